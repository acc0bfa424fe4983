"""SparseLinear: a linear layer, for inference, that stores only the weights that are not 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.functional.sparse_linear import sparse_linear
from stochprune.sparse_rows import WIDEST, SparseRows, pack, unpack, why_invalid


class SparseLinear(nn.Module):
    """``y = x W^T + bias`` with a sparse W, for inference on a CPU in float32.

    It takes six bytes for each weight that is not 0, and its time grows with their number. The compiled CPU kernel sums
    the kept weights of an output in one order, so that an example's output does not depend on the batch or on the
    number of threads; it differs from the dense layer's by rounding. Other devices, and a machine without the compiled
    kernels, use torch's sparse product.

    A weight that is 0 reads nothing: NaN or infinity in x reaches only the outputs that have a weight for it, where the
    dense layer returns NaN for all of them.

    Args:
        in_features: at most 65536.
        out_features: the number of outputs.
        bias: whether there is a bias.

    A new layer keeps no weights: make one with :meth:`from_linear`, or load a state_dict.

    Shape:
        input float32 [..., in_features], output float32 [..., out_features].

    Attributes:
        values: float32 [kept], row after row. All four are buffers, so that no optimiser finds them.
        columns: uint16 [kept], the column of each value.
        first: int64 [out_features + 1], the index of the first value of each row, then the number of values.
        bias: float32 [out_features], or None.

    Raises:
        ValueError: more than 65536 inputs, or a negative number of inputs or outputs.
    """

    values: Tensor
    columns: Tensor
    first: Tensor
    bias: Tensor | None

    @checked
    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        if not 0 <= in_features <= WIDEST:
            raise ValueError(f"SparseLinear: in_features must be 0 .. {WIDEST}, got {in_features}; keep it nn.Linear")
        if out_features < 0:
            raise ValueError(f"SparseLinear: out_features must be a size, got {out_features}")
        self.in_features, self.out_features = in_features, out_features
        nothing = SparseRows(
            torch.zeros(0), torch.zeros(0, dtype=torch.uint16), torch.zeros(out_features + 1, dtype=torch.int64)
        )
        self._take(nothing, torch.zeros(out_features) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> SparseLinear:
        """Return a sparse layer with the weights of a linear layer that are not 0, copied.

        Raises:
            TypeError: not an ``nn.Linear``, or one that is not float32.
            ValueError: more than 65536 inputs.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"SparseLinear.from_linear: linear must be an nn.Linear, got {type(linear).__name__}")
        if linear.weight.dtype != torch.float32:
            raise TypeError(f"SparseLinear.from_linear: the weight is {linear.weight.dtype}: convert it with .float()")
        layer = cls(linear.in_features, 0, bias=linear.bias is not None)
        layer.out_features = linear.out_features
        layer._take(pack(linear.weight.detach()), None if linear.bias is None else linear.bias.detach().clone())
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """Return the dense layer, with +0 where nothing is kept; it trains."""
        with torch.device("meta"):  # the parameters follow
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = nn.Parameter(unpack(self.rows, self.in_features))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        return linear.train(self.training)

    @property
    def rows(self) -> SparseRows:
        """Return the three tensors of the weight."""
        held = self._buffers  # faster than attributes, which every forward would read
        return SparseRows(held["values"], held["columns"], held["first"])  # type: ignore[arg-type]

    @property
    def sparsity(self) -> float:
        """Return the fraction of weights that are 0."""
        return 1 - len(self.values) / max(1, self.in_features * self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + bias``.

        Raises:
            TypeError: x is not float32, or the layer was converted to another dtype.
            ValueError: a shape or device that does not fit.
            RuntimeError: x requires a gradient, which this layer does not have.
        """
        return sparse_linear(x, self.rows, self.in_features, self._buffers["bias"])

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows of the layer."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, sparsity={self.sparsity:.4f}"

    def _take(self, rows: SparseRows, bias: Tensor | None) -> None:
        for name, tensor in {**rows._asdict(), "bias": bias}.items():
            self.register_buffer(name, tensor)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load as torch does, but from rows with any number of weights, and only if they are valid together."""
        given = {name: state_dict[prefix + name] for name in SparseRows._fields if prefix + name in state_dict}
        if given:
            wrong = self._why_not(given)
            if wrong:
                args[-1].append(f"{prefix.rstrip('.') or 'SparseLinear'}: {wrong}")  # the list of error messages
                return
            for name in ("values", "columns"):
                setattr(self, name, getattr(self, name).new_empty(given[name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, tensor in self._buffers.items():  # assign=True takes tensors as they are; the kernel reads no strides
            self._buffers[name] = None if tensor is None else tensor.contiguous()

    def __getstate__(self) -> dict[str, Any]:
        # torch's pickle of uint16 tensors cannot be read back.
        columns = self.columns.view(torch.int16)
        return {**self.__dict__, "_buffers": {**self._buffers, "columns": columns}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.columns = self.columns.view(torch.uint16)

    def _why_not(self, given: dict[str, Tensor]) -> str | None:
        if missing := set(SparseRows._fields) - set(given):
            return f"{', '.join(sorted(missing))} is missing beside {', '.join(sorted(given))}"
        rows = SparseRows(**given)
        if rows.first.shape != self.first.shape:
            return f"first has shape {tuple(rows.first.shape)}, the layer {tuple(self.first.shape)}"
        return why_invalid(rows, self.in_features)
