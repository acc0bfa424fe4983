"""NMMaskedLinear: linear layers that keep exactly n of every m neighbouring weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stochprune import functional, masks, patterns
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.masked_transposed import MaskedTransposedLinear


class _NM(MaskedLayer):
    """Base of the layers with N:M masks: m neighbouring inputs of an output are a group, however they are stored."""

    own_sparsity = True
    independent = False
    pattern: str
    bias: nn.Parameter | None

    def _configure(self, pattern: str = "2:4") -> None:
        if not isinstance(pattern, str):
            raise TypeError(f"{type(self).__name__}: pattern must be a text such as '2:4', got {pattern!r}")
        patterns.parse(pattern)
        self.pattern = pattern

    def _initial_logits(self, keep: float | Tensor, weight: Tensor) -> Tensor:
        patterns.check(type(self).__name__, *patterns.parse(self.pattern), self.as_rows(weight).shape[1])
        return super()._initial_logits(keep, weight)

    def gate(self) -> Tensor:
        """bool: the most probable pattern of each group; of equal logits the first. ``ValueError`` for NaN logits."""
        logits = {"mask_logits": self.as_rows(self.mask_logits.detach())}
        return self.from_rows(masks.n_of_m(logits, *patterns.parse(self.pattern))["mask_logits"])

    def _mask_at(self, draw: int) -> Tensor:
        logits = self.as_rows(self.mask_logits.detach())
        at: dict[str, Any] = {"seed": self.mask_seed, "draw": draw, "stream": self.stream}
        return self.from_rows(functional.nm_keep_mask(logits, pattern=self.pattern, **at))

    def thresholded_weight(self) -> Tensor:
        return self.unmasked_weight() * self.gate().to(self.weight.dtype)

    def divergence(self, prior_logits: Tensor | float) -> Tensor:
        prior = self.as_rows(prior_logits) if isinstance(prior_logits, Tensor) else prior_logits
        return functional.nm_kl(self.as_rows(self.mask_logits), prior, self.pattern)

    def _masked_forward(self, x: Tensor, **at: Any) -> Tensor:
        estimator, _ = at.pop("estimator"), at.pop("temperature")
        if estimator != "straight_through":
            raise ValueError(f"{type(self).__name__}: n:m masks know the estimator straight_through, not {estimator}")
        weight, logits = self.as_rows(self.weight), self.as_rows(self.mask_logits)
        return functional.masked_linear_nm(x, weight, logits, self.bias, pattern=self.pattern, **at)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pattern={self.pattern}"


class NMMaskedLinear(_NM, MaskedLinear):
    """``y = x (z * weight)^T + bias``, z an N:M mask (:func:`stochprune.functional.masked_linear_nm`).

    In evaluation mode, and hardened, each group keeps its n weights of the highest logits, the most probable pattern. A
    number added to all logits of a group changes nothing, and the estimator is always straight_through.

    Args:
        in_features, out_features, bias: as in :class:`torch.nn.Linear`; m divides in_features.
        pattern: ``"n:m"``, m of 2, 4 or 8, n below m and at most 4.
        **options: as for :class:`MaskedLinear`. ``keep`` gives the logits: the odds before conditioning on n.

    Raises:
        ValueError: a pattern that is none, or that does not divide the rows.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, pattern: str = "2:4", **options: Any
    ) -> None:
        self._configure(pattern)
        super().__init__(in_features, out_features, bias, **options)


class NMMaskedTransposedLinear(_NM, MaskedTransposedLinear):
    """``y = x (z * weight) + bias`` with N:M masks, for ``Conv1D`` of transformers; see :class:`NMMaskedLinear`.

    The groups are m neighbouring inputs of an output, down a column of the weight [nx, nf].
    """
