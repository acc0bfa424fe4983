"""Weight rewinding: return to the weights of an early epoch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stochprune.training.state import State


class Rewinding:
    """A callback that keeps a model's parameters and buffers after an epoch, so that it can return to them.

    Put it after the callbacks that may end the training. If one of them does so before the epoch, this raises
    ``ValueError``, and the last checkpoint remains that of a training that is not finished.

    Args:
        model: the model before its training.
        epoch: the number of epochs after which to keep them; 0 keeps them at once.
    """

    def __init__(self, model: nn.Module, epoch: int) -> None:
        self.epoch = epoch
        self.kept = _copy(model) if epoch == 0 else {}

    def on_start(self, state: State) -> None:
        self._require_more(state)  # the checkpoint may be that of a training that was ended

    def on_epoch(self, state: State) -> None:
        if state.epoch == self.epoch:
            self.kept = _copy(state.model)
        self._require_more(state)

    def _require_more(self, state: State) -> None:
        if state.stop and state.epoch < self.epoch:
            raise ValueError(
                f"imp: retraining 'wr' returns to the weights after epoch {self.epoch}, but a callback ends the dense "
                f"training after epoch {state.epoch}: let it wait longer, and with out the same call continues from "
                "the last checkpoint; or take retraining='lrw', which keeps the weights"
            )

    def rewind(self, model: nn.Module) -> None:
        """Set the parameters and buffers of a model to those that were kept."""
        model.load_state_dict(self.kept)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
