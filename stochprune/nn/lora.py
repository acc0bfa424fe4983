"""Linear layers with a low-rank update (LoRA) that keeps the zeros of a pruned weight."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import functional
from stochprune.functional.masked_lora import kept_of, updated_weight, where_kept
from stochprune.nn.hooks import move_hooks
from stochprune.nn.mask_source import MaskSource
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.masked_module import retyped
from stochprune.seeding import generator


def check_adapter(op: str, rank: int, alpha: float, dropout: float) -> None:
    """Raise unless these are a rank of at least 1, a finite alpha and a dropout in [0, 1)."""
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"{op}: rank must be an integer of at least 1, got {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise TypeError(f"{op}: alpha must be a number, got {alpha!r}")
    if rank < 1:
        raise ValueError(f"{op}: rank must be at least 1, got {rank}")
    if not math.isfinite(alpha):
        raise ValueError(f"{op}: alpha must be finite, got {alpha}")
    kept_of(op, dropout)


class _LoRA(MaskSource):
    """The adapter of a linear layer: ``lora_A`` [rank, in_features] and ``lora_B`` [out_features, rank].

    Attributes:
        rank, alpha: the update is ``alpha / rank * lora_B @ lora_A``.
        dropout: the probability of dropping an input of the update in a forward pass that samples; it may be changed.
    """

    own_state = (*MaskSource.own_state, "lora_A", "lora_B")

    in_features: int
    out_features: int
    weight: Tensor
    bias: Tensor | None
    lora_A: Tensor
    lora_B: Tensor
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def _set_adapter(self, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0) -> None:
        check_adapter(type(self).__name__, rank, alpha, dropout)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    def _start_adapter(self, seed: int) -> None:
        """Make lora_A uniform within 1 / sqrt(in_features), and lora_B zero; both are float32 or wider."""
        (n, k), dtype = self.weight.shape, torch.promote_types(self.weight.dtype, torch.float32)
        bound = 1 / math.sqrt(max(1, k))
        values = torch.zeros(self.rank, k, dtype=dtype, device=self.weight.device)
        if not self.weight.is_meta:
            values.copy_(torch.from_numpy(generator(seed, "lora", self.stream).uniform(-bound, bound, (self.rank, k))))
        self.lora_A, self.lora_B = nn.Parameter(values), nn.Parameter(values.new_zeros(n, self.rank))

    @property
    def scale(self) -> float:
        """Return the factor of the update, alpha / rank."""
        return self.alpha / self.rank

    def unmasked_weight(self) -> Tensor:
        """Return ``weight + scale * lora_B @ lora_A`` in the weight's dtype, differentiable, without its mask."""
        return updated_weight(self.weight, self.lora_A, self.lora_B, self.scale).to(self.weight.dtype)

    def _adapted(self, x: Tensor, logits: Tensor | None, dropout: float, at: dict[str, Any]) -> Tensor:
        weights = (self.weight, self.lora_A, self.lora_B, logits, self.bias)
        shift = self._dropout_rank() * self.in_features if dropout else 0
        at |= {"scale": self.scale, "dropout": dropout, "dropout_offset": shift}
        return functional.masked_lora_linear(x, *weights, **at)

    def _dropout_rank(self) -> int:
        """Return the number of this process among those that share a draw but have examples of their own."""
        if self.mask_ranks > 1 or not self.training:
            return 0
        if self.mask_rank is None:
            from stochprune.runs import ranks  # here: a layer needs no runs otherwise

            return ranks.rank()
        return self.mask_rank

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}, dropout={self.dropout:g}"


class MaskedLoRALinear(_LoRA, MaskedLinear):
    """``y = x (z * (weight + scale * lora_B lora_A))^T + bias`` with a mask z that is sampled and never stored.

    :func:`stochprune.nn.add_lora` makes it from a :class:`MaskedLinear`, with the same logits and counter. The op is
    :func:`stochprune.functional.masked_lora_linear`. :func:`stochprune.harden` merges the update: it returns plain
    layers whose pruned weights are exactly 0.

    Args:
        in_features, out_features, bias: as in :class:`torch.nn.Linear`.
        rank, alpha: the update is ``alpha / rank * lora_B @ lora_A``.
        dropout: the probability of dropping an input of the update, in [0, 1).
        **options: as for :class:`MaskedLinear`.

    Raises:
        TypeError: a rank, alpha or dropout that is not a number.
        ValueError: a rank below 1, an alpha that is not finite, a dropout outside [0, 1).
    """

    own_state = (*MaskedLinear.own_state, "lora_A", "lora_B")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        self._configure(rank, alpha, dropout)
        super().__init__(in_features, out_features, bias, **options)

    def _configure(self, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0) -> None:
        self._set_adapter(rank, alpha, dropout)

    def _adopt(self, *args: Any, **options: Any) -> None:
        super()._adopt(*args, **options)
        self._start_adapter(options["seed"])

    @classmethod
    def from_masked(cls, layer: MaskedLinear, rank: int, alpha: float, dropout: float, seed: int) -> MaskedLoRALinear:
        """Return this layer with the parameters, the mask and the hooks of ``layer``; ``seed`` is that of lora_A."""
        made = retyped(layer, cls)
        made._configure(rank, alpha, dropout)
        made._start_adapter(seed)
        return made

    def to_masked(self) -> MaskedLinear:
        """Return a layer with the merged weight, and the mask of this one."""
        made = retyped(self, MaskedLinear)
        made.weight = nn.Parameter(self.unmasked_weight().detach(), requires_grad=self.weight.requires_grad)
        for name in ("lora_A", "lora_B", "rank", "alpha", "dropout"):
            delattr(made, name)
        return made

    @property
    def independent(self) -> bool:  # type: ignore[override]  # dropout is more than one decision for each logit
        return not self.dropout

    def _masked_forward(self, x: Tensor, **at: Any) -> Tensor:
        return self._adapted(x, self.mask_logits, self.dropout, at)


class SparseLoRALinear(_LoRA):
    """``y = x (z * (weight + scale * lora_B lora_A))^T + bias`` with z = 1 where ``weight`` is not 0.

    The mask is the zeros of the weight itself, so it takes no memory. :func:`stochprune.nn.add_lora` makes this layer
    from an ``nn.Linear``, and :func:`stochprune.nn.merge_lora` goes back. A forward pass with dropout uses the next
    draw, as a masked layer does; ``mask_seed`` and ``mask_draw`` are in the state_dict for this.

    Args:
        linear: the pruned layer, whose parameters and hooks are used without copies.
        rank, alpha, dropout: as for :class:`MaskedLoRALinear`.
        seed: 0 .. 2^64 - 1, of lora_A and the dropout.
        stream: 0 .. 2^31 - 1, of the layer.

    Raises:
        TypeError: not an ``nn.Linear``; otherwise as for :class:`MaskedLoRALinear`.
        ValueError: as for :class:`MaskedLoRALinear`.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int = 8,
        *,
        alpha: float = 16.0,
        dropout: float = 0.0,
        seed: int = 0,
        stream: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"SparseLoRALinear: linear must be an nn.Linear, got {type(linear).__name__}")
        self._set_adapter(rank, alpha, dropout)
        self.in_features, self.out_features, self.weight = linear.in_features, linear.out_features, linear.weight
        self.register_parameter("bias", linear.bias)
        self._start_source(
            seed=seed, stream=stream, estimator="straight_through", temperature=1.0, device=self.weight.device
        )
        self._blank = self.weight.is_meta
        self._start_adapter(seed)
        move_hooks(linear, self)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer, with dropout if it samples: in training mode, or inside ``sampling``."""
        dropout = self.dropout if self.samples_now else 0.0
        return self._adapted(x, None, dropout, self.address(None if dropout else self.mask_draw))

    def to_linear(self) -> nn.Linear:
        """Return a plain layer with the merged weight, which has all zeros of ``weight``."""
        with torch.device("meta"):  # parameters are set below
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        merged = where_kept(self.unmasked_weight().detach(), self.weight.detach())
        linear.weight = nn.Parameter(merged, requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        move_hooks(self, linear)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}{super().extra_repr()}"
