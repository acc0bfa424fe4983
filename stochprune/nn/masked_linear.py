"""MaskedLinear: nn.Linear under a stochastic mask."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from stochprune import functional
from stochprune.nn.layer import MaskedLayer
from stochprune.seeding import generator


class MaskedLinear(MaskedLayer):
    """``y = x (z * weight)^T + bias`` with a mask z that is drawn in each forward and never stored.

    Args:
        in_features, out_features, bias, device, dtype: as in :class:`torch.nn.Linear`. The weights start from its
            distribution, drawn by ``seed`` and ``stream``.
        keep: the initial probability of keeping, in (0, 1): a number or a tensor [out_features, in_features].
        estimator, temperature: see :func:`stochprune.functional.masked_linear`.
        seed: 0 .. 2^64 - 1, of the run.
        stream: 0 .. 2^31 - 1, of the layer. Layers of one model need different streams; :func:`stochprune.convert`
            takes them from the parameters' names.

    Shape:
        input [..., in_features], output [..., out_features].
    """

    in_features: int
    out_features: int

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        keep: float | Tensor = 0.95,
        estimator: str = "straight_through",
        temperature: float = 1.0,
        seed: int = 0,
        stream: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dense = skip_init(nn.Linear, in_features, out_features, bias, device=device or "cpu", dtype=dtype)
        self._adopt(dense, keep, estimator=estimator, temperature=temperature, seed=seed, stream=stream)
        numbers, bound = generator(seed, "initialise", self.stream), 1 / math.sqrt(max(1, in_features))
        for parameter in dense.parameters():
            parameter.detach().copy_(torch.from_numpy(numbers.uniform(-bound, bound, tuple(parameter.shape))))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        keep: float | Tensor = 0.95,
        *,
        estimator: str = "straight_through",
        temperature: float = 1.0,
        seed: int = 0,
        stream: int | None = None,
    ) -> MaskedLinear:
        """A masked layer on the very parameters of ``linear``."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(linear, keep, estimator=estimator, temperature=temperature, seed=seed, stream=stream)
        return layer.train(linear.training)

    def _adopt(
        self,
        linear: nn.Linear,
        keep: float | Tensor,
        *,
        estimator: str,
        temperature: float,
        seed: int,
        stream: int | None,
    ) -> None:
        self.in_features, self.out_features = linear.in_features, linear.out_features
        logits = nn.Parameter(logits_of(keep, linear.weight))
        self._init_mask(linear.weight, logits, estimator=estimator, temperature=temperature, seed=seed, stream=stream)
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.samples_now:
            return F.linear(x, self.thresholded_weight(), self.bias)
        return functional.masked_linear(
            x,
            self.weight,
            self.mask_logits,
            self.bias,
            seed=self.mask_seed,
            draw=self.next_draw().squeeze(0),
            stream=self.stream,
            estimator=self.estimator,
            temperature=self.temperature,
        )

    def to_linear(self, mask: Tensor | None = None) -> nn.Linear:
        """A plain layer whose pruned weights are exactly 0.

        Args:
            mask: bool [out_features, in_features], True where kept; default: where :meth:`gate` keeps. A soft gate
                scales what is kept.
        """
        dense = skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        dense.weight = nn.Parameter(self.hardened_weight(mask), requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        keep = torch.sigmoid(self.mask_logits.detach().float()).mean().item() if self.mask_logits.numel() else 0.0
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"keep={keep:.4g}, estimator={self.estimator}"
        )


def logits_of(keep: float | Tensor, weight: Tensor) -> Tensor:
    """Logits like ``weight`` whose sigmoid is ``keep``, a number or a tensor in the open interval (0, 1)."""
    q = keep if isinstance(keep, Tensor) else torch.tensor(float(keep))
    if isinstance(keep, Tensor) and keep.shape != weight.shape:
        raise ValueError(f"keep {tuple(keep.shape)} and weight {tuple(weight.shape)} differ in shape")
    if not bool(((q > 0) & (q < 1)).all()):
        shown = keep if not isinstance(keep, Tensor) else f"a tensor from {q.min():.4g} to {q.max():.4g}"
        raise ValueError(f"keep must lie strictly between 0 and 1, got {shown}")
    return torch.logit(q.double()).to(weight).expand_as(weight).contiguous()
