"""The base of all masked layers: a weight with keep logits, and the choice between sampled and thresholded masks."""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar, final

import numpy as np
import torch
from torch import Tensor, nn

from stochprune import functional, rng
from stochprune.functional._address import check_estimator
from stochprune.functional._checks import FLOATING, check_floating
from stochprune.masks.select import count_true
from stochprune.nn.hooks import move_hooks
from stochprune.nn.uncast import UncastLogits
from stochprune.quantised import dequantised, is_quantised
from stochprune.seeding import generator
from stochprune.shards import is_dtensor

Layer = TypeVar("Layer", bound="MaskedLayer")


class MaskedLayer(UncastLogits):
    """Base of the masked layers, which have a ``weight`` and one keep logit for each of its entries.

    The state_dict contains ``weight`` and ``bias`` as in the dense layer, ``mask_logits``, and ``mask_seed`` and
    ``mask_draw``, so that a resumed run continues with the next mask. A dense checkpoint loads too and
    does not change the mask.

    Args:
        *args, **kwargs, device, dtype: as for the dense layer. Weights are initialised from the dense layer's
            distribution, by ``seed`` and ``stream``.
        keep: the initial probability of keeping, in (0, 1): a number or a tensor of the weight's shape.
        estimator, temperature: see :func:`stochprune.functional.masked_linear`.
        seed: 0 .. 2^64 - 1, the seed of the run.
        stream: 0 .. 2^31 - 1, the number of the layer. Layers of one model need different streams;
            :func:`stochprune.convert` computes them from the parameters' names.

    A layer type implements :meth:`_dense_forward` and :meth:`_masked_forward`. :meth:`forward` is final and chooses
    between them, so that every layer supports ``fused_masking``, ``batched_samples`` and :func:`antithetic_gradients`.

    Attributes:
        sample, estimator, temperature, stream: see :class:`stochprune.nn.mask_source.MaskSource`.
        dense_type: the type of the dense layer.
        settings: names of the dense constructor's arguments, which are attributes of both layers.
        own_sparsity: True if the number of kept weights does not depend on the logits.
        local_reparameterisation: True if a forward pass samples pre-activations instead of masks, see
            :func:`stochprune.nn.local_reparameterisation.reparameterise_locally`.
        independent: True if the only randomness is one independent decision for each logit, to keep or to prune.
    """

    dense_type: ClassVar[type[nn.Module]]
    settings: ClassVar[tuple[str, ...]]
    own_state: ClassVar[tuple[str, ...]] = ("mask_logits", "mask_seed", "mask_draw")
    own_sparsity: ClassVar[bool] = False
    independent: ClassVar[bool] = True

    weight: Tensor
    bias: Tensor | None
    mask_logits: Tensor
    local_reparameterisation: bool = False

    def __init__(
        self,
        *args: Any,
        keep: float | Tensor = 0.95,
        estimator: str = "straight_through",
        temperature: float = 1.0,
        seed: int = 0,
        stream: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        # skip_init, because the constructor would use torch's global generator.
        try:
            dense = nn.utils.skip_init(self.dense_type, *args, device=device or "cpu", dtype=dtype, **kwargs)
        except (RuntimeError, IndexError) as error:
            layer = f"{type(self).__name__}: torch.nn.{self.dense_type.__name__}"
            raise ValueError(f"{layer} does not take {args} {kwargs} device={device} dtype={dtype}: {error}") from error
        self._adopt(dense, keep, estimator=estimator, temperature=temperature, seed=seed, stream=stream)
        self._initialise(generator(seed, "initialise", self.stream))

    @classmethod
    def from_dense(
        cls: type[Layer],
        dense: nn.Module,
        keep: float | Tensor = 0.95,
        *,
        estimator: str = "straight_through",
        temperature: float = 1.0,
        seed: int = 0,
        stream: int | None = None,
        logits_dtype: torch.dtype | None = None,
        **own: Any,
    ) -> Layer:
        """Return a masked layer with the parameters and hooks of ``dense``; ``own``: arguments of this layer type only.

        The logits have the dtype of the weight unless ``logits_dtype`` is given.

        Raises:
            TypeError: ``dense`` is not of the type that this layer replaces.
        """
        if not cls._stands_for(dense):
            raise TypeError(
                f"{cls.__name__}: dense must be a {cls.dense_name()}, got {type(dense).__name__}; "
                f"stochprune.convert finds the masked layer for each of a model's layers"
            )
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._configure(**own)
        options = {"estimator": estimator, "temperature": temperature, "seed": seed, "logits_dtype": logits_dtype}
        layer._adopt(dense, keep, stream=stream, **options)
        return layer.train(dense.training)

    def to_dense(self, mask: Tensor | None = None) -> nn.Module:
        """Return a plain layer whose pruned weights are exactly 0.

        Args:
            mask: bool, of the weight's shape, True where kept; default: where :meth:`gate` keeps. A soft gate scales
                the kept weights.
        """
        settings = {name: getattr(self, name) for name in self.settings}
        if "bias" in settings:
            settings["bias"] = self.bias is not None
        with torch.device("meta"):  # parameters are set below
            dense = self.dense_type(**settings)
        dense.weight = self.hardened_parameter(mask)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        move_hooks(self, dense)
        return dense.train(self.training)

    @classmethod
    def _stands_for(cls, dense: nn.Module) -> bool:
        return isinstance(dense, cls.dense_type)

    @classmethod
    def dense_name(cls) -> str:
        """Return the name of the dense layer type that this layer replaces."""
        return f"torch.nn.{cls.dense_type.__name__}"

    def weight_name(self, module: str) -> str:
        """Return the qualified name of the weight of this layer, which is called ``module`` in its model."""
        return f"{module}.weight" if module else "weight"

    def _configure(self) -> None:
        """Set the arguments that only this layer type has; the layer has no parameters yet."""

    def _initial_logits(self, keep: float | Tensor, weight: Tensor) -> Tensor:
        return logits_of(type(self).__name__, keep, weight)

    def _initialise(self, numbers: np.random.Generator) -> None:
        """Fill weight and bias as torch does for linear and convolutional layers: uniform within 1 / sqrt(fan in)."""
        bound = 1 / math.sqrt(max(1, self.weight[:1].numel()))
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                shape = tuple(parameter.shape)
                parameter.detach().copy_(torch.from_numpy(numbers.uniform(-bound, bound, shape)))

    def _adopt(self, dense: nn.Module, keep: float | Tensor, *, stream: int | None, **options: Any) -> None:
        assert isinstance(dense.weight, Tensor)
        self.weight = dense.weight
        stream = rng.stream("weight") if stream is None else stream
        self._start_mask(self.weight, keep, stream=stream, **options)
        self.register_parameter("bias", getattr(dense, "bias", None))
        for name in self.settings:
            if name != "bias":
                setattr(self, name, getattr(dense, name))
        move_hooks(dense, self)

    def _start_mask(
        self,
        weight: Tensor,
        keep: float | Tensor,
        *,
        stream: int,
        estimator: str = "straight_through",
        temperature: float = 1.0,
        seed: int = 0,
        logits_dtype: torch.dtype | None = None,
    ) -> None:
        """Take the logits of ``weight``, and the address of its masks."""
        check_estimator(type(self).__name__, estimator, temperature)
        if is_dtensor(weight):
            raise ValueError(
                f"{type(self).__name__}: weight is a DTensor, {weight.placements}: convert the model first, and split "
                f"it over processes after that"
            )
        if is_quantised(weight):  # the logits have its shape, dtype and device
            weight = torch.empty((), dtype=weight.dtype, device=weight.device).expand(weight.shape)
        if weight.dtype not in FLOATING:
            raise TypeError(f"{type(self).__name__}: weight must be floating, got {weight.dtype}; convert it before")
        if logits_dtype is not None and logits_dtype not in FLOATING:
            raise TypeError(f"{type(self).__name__}: logits_dtype must be floating, got {logits_dtype}")
        self._blank = weight.is_meta
        like = weight.new_empty((), dtype=logits_dtype or weight.dtype).expand(weight.shape)  # takes no memory
        self.mask_logits = nn.Parameter(self._initial_logits(keep, like))
        self._start_source(seed=seed, stream=stream, estimator=estimator, temperature=temperature, device=weight.device)

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the dense layer on x with a sampled mask, the evaluation mode's mask, or an overridden weight."""
        if self._sharded_dtype is not None and self.mask_logits.dtype is not self._sharded_dtype:
            self._refuse_cast()
        if self.weight_override is not None:
            if self.weight_override.dtype == self.weight.dtype or torch.is_autocast_enabled(x.device.type):
                return self._dense_forward(x, dequantised(self.weight_override), *args, **kwargs)
            return self._masked_forward(x, *args, **kwargs, **self.address(self.draw_override))
        if self.samples_now:
            at = self.address()
            if self.local_reparameterisation:
                return self._local_forward(x, *args, **kwargs, seed=at["seed"], draw=at["draw"], stream=at["stream"])
            return self._masked_forward(x, *args, **kwargs, **at)
        return self._thresholded_forward(x, *args, **kwargs)

    def _trained(self) -> tuple[Any, Any, Any]:
        """Return weight, logits and bias.

        nn.Module takes long to find an attribute, which only a parameter with a parametrisation needs.
        """
        held = self._parameters
        if "weight" in held and "mask_logits" in held and "bias" in held:
            return held["weight"], held["mask_logits"], held["bias"]
        return self.weight, self.mask_logits, self.bias

    def _dense_forward(self, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run torch's own operator with this weight, which is already masked."""
        raise NotImplementedError(type(self).__name__)

    def _masked_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the op under the masks of the address in ``kwargs``, which :meth:`address` returned."""
        raise NotImplementedError(type(self).__name__)

    def _local_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the op of local reparameterisation with the seed, draw and stream in ``kwargs``."""
        raise NotImplementedError(type(self).__name__)

    def _thresholded_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer under :meth:`gate`."""
        return self._dense_forward(x, self.thresholded_weight(), *args, **kwargs)

    def of_weight(self, mask: Tensor) -> Tensor:
        """Return a mask of the logits' shape in the weight's shape; the shapes differ if weights share a mask."""
        return mask

    def of_logits(self, values: Tensor) -> Tensor:
        """Return values of the weight's shape in the logits' shape: their means if weights share a mask."""
        return values

    def as_rows(self, values: Tensor) -> Tensor:
        """Return values of the logits' shape with a row, an entry of the first dimension, for each output."""
        return values

    def from_rows(self, rows: Tensor) -> Tensor:
        """Return values of :meth:`as_rows` in the logits' shape."""
        return rows

    def gate(self) -> Tensor:
        """Return the mask of the evaluation mode, in the weight's shape.

        It is bool, True for a keep probability of one half or more. With the estimator hard_concrete it is soft, see
        :func:`stochprune.functional.hard_concrete_gate`.

        Raises:
            ValueError: NaN logits.
        """
        return self.of_weight(self._gate_of(self.mask_logits.detach()))

    def _gate_of(self, logits: Tensor) -> Tensor:
        if not logits.is_meta and (count := count_true(logits.isnan())):
            raise ValueError(f"{type(self).__name__}.gate: {count} of {logits.numel()} mask_logits are NaN")
        return functional.hard_concrete_gate(logits) if self.estimator == "hard_concrete" else logits >= 0

    def mask(self, draw: int | None = None) -> Tensor:
        """Return a hard mask of the weight's shape, bool: True where kept.

        Args:
            draw: 0 .. 2^32 - 1: return the mask of this draw, at the layer's seed and stream, as the estimator
                ``straight_through`` samples it. Default: the mask of the evaluation mode, which
                :func:`stochprune.harden` cuts if no sparsity is given. No counter advances.

        Raises:
            ValueError: NaN logits, or a draw outside its range.
        """
        return self.gate() > 0 if draw is None else self.of_weight(self._mask_at(draw))

    def _mask_at(self, draw: int) -> Tensor:
        """Return the mask of a draw, of the logits' shape."""
        logits = self.mask_logits.detach()
        return functional.mask(logits, seed=self.mask_seed, draw=draw, stream=self.stream) > 0

    def divergence(self, prior_logits: Tensor | float) -> Tensor:
        """Return the KL of this layer's mask from that of a prior, in nats: a float64 scalar, differentiable."""
        return functional.bernoulli_kl(self.mask_logits, prior_logits)

    def unmasked_weight(self) -> Tensor:
        """Return the weight that the mask multiplies, differentiable; a layer type may add to its ``weight``."""
        if (weight := dequantised(self.weight)).dtype not in FLOATING:  # given after the layer was made
            check_floating(type(self).__name__, weight=weight)
        return weight

    def thresholded_weight(self) -> Tensor:
        """Return the weight of the evaluation mode, masked by :meth:`gate`; NaN where the logit is NaN.

        It is differentiable in the weight. Each forward pass computes it, so it does not test for NaN as gate does: the
        host would have to wait for a GPU.
        """
        return self._thresholded(self.unmasked_weight(), self.mask_logits.detach())

    def _thresholded(self, weight: Tensor, logits: Tensor) -> Tensor:
        if self.estimator == "hard_concrete":
            return weight * functional.hard_concrete_gate(logits).to(weight.dtype)
        return torch.where(logits >= 0, weight, logits.clamp(0, 0).to(weight.dtype))  # clamp keeps NaN

    def hardened_weight(self, mask: Tensor | None = None) -> Tensor:
        """Return the weight, exactly 0 where ``mask`` (bool, default: the gate) prunes; a soft gate scales the rest."""
        gate, weight = self.gate(), self.unmasked_weight().detach()
        if gate.is_floating_point():
            weight = weight * gate.to(weight.dtype)
        return torch.where(gate > 0 if mask is None else mask, weight, 0.0)

    def hardened_parameter(self, mask: Tensor | None = None) -> nn.Parameter:
        """Return :meth:`hardened_weight` as a parameter that is trained if the weight is."""
        return nn.Parameter(self.hardened_weight(mask), requires_grad=self.weight.requires_grad)

    def extra_repr(self) -> str:
        logits = self.mask_logits.detach()
        keep = "?" if logits.is_meta or not logits.numel() else f"{torch.sigmoid(logits.float()).mean().item():.4g}"
        return f"{self._dense_repr()}, keep={keep}, estimator={self.estimator}"

    def _dense_repr(self) -> str:
        return self.dense_type.extra_repr(self)


def logits_of(op: str, keep: float | Tensor, weight: Tensor) -> Tensor:
    """Return logits like ``weight`` whose sigmoid is ``keep``, a number or a tensor in the open interval (0, 1)."""
    if isinstance(keep, bool) or not isinstance(keep, int | float | np.floating | Tensor):
        raise TypeError(f"{op}: keep must be a number or a tensor, strictly between 0 and 1, got {keep!r}")
    q = keep if isinstance(keep, Tensor) else torch.tensor(float(keep) if 0 < keep < 1 else math.nan)
    if isinstance(keep, Tensor) and keep.shape != weight.shape:
        raise ValueError(f"{op}: keep {tuple(keep.shape)} and weight {tuple(weight.shape)} differ in shape")
    if not q.is_meta and not bool(((q > 0) & (q < 1)).all()):
        shown = keep if not isinstance(keep, Tensor) else f"a tensor from {q.min():.4g} to {q.max():.4g}"
        raise ValueError(f"{op}: keep must lie strictly between 0 and 1, got {shown}")
    logits = torch.logit(q.double()).to(weight).expand_as(weight)
    return logits.clone(memory_format=torch.contiguous_format)  # contiguous() leaves one weight its strides of 0
