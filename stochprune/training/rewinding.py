"""Weight rewinding: return to the weights of an early epoch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stochprune.training.state import State


class Rewinding:
    """A callback that keeps a model's parameters and buffers after an epoch, so that it can return to them.

    Args:
        model: the model before its training.
        epoch: the number of epochs after which to keep them; 0 keeps them at once.
    """

    def __init__(self, model: nn.Module, epoch: int) -> None:
        self.epoch = epoch
        self.kept = _copy(model) if epoch == 0 else {}

    def on_epoch(self, state: State) -> None:
        if state.epoch == self.epoch:
            self.kept = _copy(state.model)

    def rewind(self, model: nn.Module) -> None:
        """Set the parameters and buffers of a model to those that were kept."""
        model.load_state_dict(self.kept)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
