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
    __doc__ = _MaskedRecurrent.__doc__
    dense_type = nn.RNN


class MaskedLSTM(_MaskedRecurrent, nn.LSTM):
    __doc__ = _MaskedRecurrent.__doc__
    dense_type = nn.LSTM


class MaskedGRU(_MaskedRecurrent, nn.GRU):
    __doc__ = _MaskedRecurrent.__doc__
    dense_type = nn.GRU


class _MaskedCell(MaskedModule):
    """Torch's recurrent cell under masked ``weight_ih`` and ``weight_hh``.

    Each call has masks of its own, so each time step has.

    Shape:
        as in torch's module.
    """

    weights = ("weight_ih", "weight_hh")


class MaskedRNNCell(_MaskedCell, nn.RNNCell):
    __doc__ = _MaskedCell.__doc__
    dense_type = nn.RNNCell


class MaskedLSTMCell(_MaskedCell, nn.LSTMCell):
    __doc__ = _MaskedCell.__doc__
    dense_type = nn.LSTMCell


class MaskedGRUCell(_MaskedCell, nn.GRUCell):
    __doc__ = _MaskedCell.__doc__
    dense_type = nn.GRUCell


RECURRENT: tuple[type[MaskedModule], ...] = (
    MaskedRNN,
    MaskedLSTM,
    MaskedGRU,
    MaskedRNNCell,
    MaskedLSTMCell,
    MaskedGRUCell,
)
