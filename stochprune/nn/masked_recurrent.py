"""MaskedRNN, MaskedLSTM, MaskedGRU and their cells: torch's recurrent modules under stochastic masks."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from stochprune.nn.masked_module import MaskedModule


class _MaskedRecurrent(MaskedModule, nn.RNNBase):
    """Torch's recurrent module under masked weights: a forward has one mask of each weight, for all its time steps.

    All matrices are masked: ``weight_ih_l*``, ``weight_hh_l*`` and, with ``proj_size``, ``weight_hr_l*``.

    Shape:
        as in torch's module.
    """

    @classmethod
    def weight_names(cls, dense: nn.Module) -> tuple[str, ...]:
        assert isinstance(dense, nn.RNNBase)
        return tuple(name for name in dense._flat_weights_names if name.startswith("weight"))

    def _exchange(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        # The forward reads this list. It would make it again, and keep it, if the parameters were others.
        self._update_flat_weights()
        before = dict(zip(self._flat_weights_names, cast("list[Tensor]", self._flat_weights), strict=True))
        self._flat_weights = [*{**before, **weights}.values()]
        return {name: before[name] for name in weights}

    def with_weights(self, weights: dict[str, nn.Parameter]) -> nn.Module:
        dense = super().with_weights(weights)
        assert isinstance(dense, nn.RNNBase)
        dense._init_flat_weights()
        return dense


class MaskedRNN(_MaskedRecurrent, nn.RNN):
    """``nn.RNN`` under masked weights: a forward has one mask of each weight, for all its time steps."""

    dense_type = nn.RNN


class MaskedLSTM(_MaskedRecurrent, nn.LSTM):
    """``nn.LSTM`` likewise; ``weight_hr_l*`` of projections is masked too."""

    dense_type = nn.LSTM


class MaskedGRU(_MaskedRecurrent, nn.GRU):
    """``nn.GRU`` likewise."""

    dense_type = nn.GRU


class MaskedRNNCell(MaskedModule, nn.RNNCell):
    """``nn.RNNCell`` under masked weights: each call has masks of its own, and so each time step."""

    dense_type, weights = nn.RNNCell, ("weight_ih", "weight_hh")


class MaskedLSTMCell(MaskedModule, nn.LSTMCell):
    """``nn.LSTMCell`` likewise."""

    dense_type, weights = nn.LSTMCell, ("weight_ih", "weight_hh")


class MaskedGRUCell(MaskedModule, nn.GRUCell):
    """``nn.GRUCell`` likewise."""

    dense_type, weights = nn.GRUCell, ("weight_ih", "weight_hh")


RECURRENT: tuple[type[MaskedModule], ...] = (
    MaskedRNN,
    MaskedLSTM,
    MaskedGRU,
    MaskedRNNCell,
    MaskedLSTMCell,
    MaskedGRUCell,
)
