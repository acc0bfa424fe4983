"""The base of all masked layers: logits, seed and draw counter, and when a layer samples."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar, final

import numpy as np
import torch
from torch import Tensor, nn

from stochprune import functional, rng
from stochprune.functional._address import check_estimator
from stochprune.nn.mask_source import MaskSource
from stochprune.seeding import generator

Layer = TypeVar("Layer", bound="MaskedLayer")

# Where torch.nn.Module keeps the user's hooks: they move with a layer that is replaced.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


class MaskedLayer(MaskSource):
    """Base of the masked layers: a ``weight`` with one keep logit for each entry.

    The state_dict contains ``weight`` and ``bias`` as in the dense layer, ``mask_logits``, and ``mask_seed`` and
    ``mask_draw``, so that a resumed run continues with the next mask. A dense checkpoint loads too; the entries of the
    mask, which it lacks, do not change.

    Args:
        *args, **kwargs, device, dtype: as for the dense layer, which also gives the distribution that the weights are
            drawn from, by ``seed`` and ``stream``.
        keep: the initial probability of keeping, in (0, 1): a number or a tensor like the weight.
        estimator, temperature: see :func:`stochprune.functional.masked_linear`.
        seed: 0 .. 2^64 - 1, of the run.
        stream: 0 .. 2^31 - 1, of the layer. Layers of one model need different streams; :func:`stochprune.convert`
            takes them from the parameters' names.

    A layer type implements :meth:`_dense_forward` and :meth:`_masked_forward`. :meth:`forward`, which is final, chooses
    between them, so that every layer obeys ``fused_masking``, ``batched_samples`` and :func:`antithetic_gradients`.

    Attributes:
        sample, estimator, temperature, stream: see :class:`stochprune.nn.mask_source.MaskSource`.
        dense_type: the dense layer.
        settings: its constructor's arguments, attributes of both layers.
        own_sparsity: whether the layer keeps as many weights as it does, whatever its logits.
        local_reparameterisation: whether a forward that draws, draws pre-activations, see
            :func:`stochprune.nn.local_reparameterisation.reparameterise_locally`.
        independent: whether its only randomness is one independent decision for each logit, to keep or to prune.
    """

    dense_type: ClassVar[type[nn.Module]]
    settings: ClassVar[tuple[str, ...]]
    own_sparsity: ClassVar[bool] = False
    independent: ClassVar[bool] = True

    weight: Tensor
    bias: Tensor | None
    mask_logits: Tensor
    local_reparameterisation: bool = False
    _blank: bool = False  # True from the meta device to the first checkpoint with the layer's mask

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
        # skip_init: the constructor would draw from torch's global generator.
        try:
            dense = nn.utils.skip_init(self.dense_type, *args, device=device or "cpu", dtype=dtype, **kwargs)
        except RuntimeError as error:
            what = f"{type(self).__name__}: torch.nn.{self.dense_type.__name__}"
            raise ValueError(f"{what} does not take {args} {kwargs} device={device} dtype={dtype}: {error}") from error
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
        **own: Any,
    ) -> Layer:
        """A masked layer on the very parameters (and hooks) of a dense one; ``own``: arguments of this layer alone.

        Raises:
            TypeError: ``dense`` is not of the type that this layer stands for.
        """
        if not cls._stands_for(dense):
            raise TypeError(
                f"{cls.__name__}: dense must be a {cls.dense_name()}, got {type(dense).__name__}; "
                f"stochprune.convert finds the masked layer for each of a model's layers"
            )
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._configure(**own)
        layer._adopt(dense, keep, estimator=estimator, temperature=temperature, seed=seed, stream=stream)
        return layer.train(dense.training)

    def to_dense(self, mask: Tensor | None = None) -> nn.Module:
        """A plain layer whose pruned weights are exactly 0.

        Args:
            mask: bool, of the weight's shape, True where kept; default: where :meth:`gate` keeps. A soft gate scales
                what is kept.
        """
        settings = {name: getattr(self, name) for name in self.settings}
        if "bias" in settings:
            settings["bias"] = self.bias is not None
        with torch.device("meta"):  # the parameters follow
            dense = self.dense_type(**settings)
        dense.weight = self.hardened_parameter(mask)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        _move_hooks(self, dense)
        return dense.train(self.training)

    @classmethod
    def _stands_for(cls, dense: nn.Module) -> bool:
        return isinstance(dense, cls.dense_type)

    @classmethod
    def dense_name(cls) -> str:
        """Name the kind of layer that this one stands for."""
        return f"torch.nn.{cls.dense_type.__name__}"

    def weight_name(self, module: str) -> str:
        """Return the qualified name of the weight of this layer, which is called ``module`` in its model."""
        return f"{module}.weight" if module else "weight"

    def _configure(self) -> None:
        """Take what only this layer knows, before any parameter is there."""

    def _initial_logits(self, keep: float | Tensor, weight: Tensor) -> Tensor:
        return logits_of(type(self).__name__, keep, weight)

    def _initialise(self, numbers: np.random.Generator) -> None:
        """Fill weight and bias as torch does for linear and convolutional layers: uniform within 1 / sqrt(fan in)."""
        bound = 1 / math.sqrt(max(1, self.weight[:1].numel()))
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                shape = tuple(parameter.shape)
                parameter.detach().copy_(torch.from_numpy(numbers.uniform(-bound, bound, shape)))

    def _adopt(
        self,
        dense: nn.Module,
        keep: float | Tensor,
        *,
        estimator: str,
        temperature: float,
        seed: int,
        stream: int | None,
    ) -> None:
        assert isinstance(dense.weight, Tensor)
        self.weight = dense.weight
        self._start_mask(
            self.weight,
            keep,
            estimator=estimator,
            temperature=temperature,
            seed=seed,
            stream=rng.stream("weight") if stream is None else stream,
        )
        self.register_parameter("bias", getattr(dense, "bias", None))
        for name in self.settings:
            if name != "bias":
                setattr(self, name, getattr(dense, name))
        _move_hooks(dense, self)

    def _start_mask(
        self,
        weight: Tensor,
        keep: float | Tensor,
        *,
        stream: int,
        estimator: str = "straight_through",
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Take the logits of ``weight``, and the address of its masks."""
        check_estimator(type(self).__name__, estimator, temperature)
        self._blank = weight.is_meta
        self.mask_logits = nn.Parameter(self._initial_logits(keep, weight))
        self._start_source(seed=seed, stream=stream, estimator=estimator, temperature=temperature, device=weight.device)

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the dense layer on x under a mask: drawn, the evaluation mode's, or that of a weight which is given."""
        if self.weight_override is not None:
            if self.weight_override.dtype == self.weight.dtype or torch.is_autocast_enabled(x.device.type):
                return self._dense_forward(x, self.weight_override, *args, **kwargs)
            return self._masked_forward(x, *args, **kwargs, **self.address(self.draw_override))
        if self.samples_now:
            at = self.address()
            if self.local_reparameterisation:
                return self._local_forward(x, *args, **kwargs, seed=at["seed"], draw=at["draw"], stream=at["stream"])
            return self._masked_forward(x, *args, **kwargs, **at)
        return self._thresholded_forward(x, *args, **kwargs)

    def _dense_forward(self, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run torch's own operator with this weight, which is masked already."""
        raise NotImplementedError(type(self).__name__)

    def _masked_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the op under the mask of an address, which is among ``kwargs``: what :meth:`address` returns."""
        raise NotImplementedError(type(self).__name__)

    def _local_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the op of local reparameterisation at seed, draw and stream, which are among ``kwargs``."""
        raise NotImplementedError(type(self).__name__)

    def _thresholded_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer under :meth:`gate`."""
        return self._dense_forward(x, self.thresholded_weight(), *args, **kwargs)

    def of_weight(self, mask: Tensor) -> Tensor:
        """A mask of the logits' shape in the weight's shape; they differ where weights share a mask."""
        return mask

    def of_logits(self, values: Tensor) -> Tensor:
        """Values of the weight's shape in the logits' shape: the mean where weights share a mask."""
        return values

    def gate(self) -> Tensor:
        """The mask of the evaluation mode, of the weight's shape.

        bool: kept with probability one half or more. The estimator hard_concrete has a soft one, see
        :func:`stochprune.functional.hard_concrete_gate`.

        Raises:
            ValueError: NaN logits.
        """
        return self.of_weight(self._gate_of(self.mask_logits.detach()))

    def _gate_of(self, logits: Tensor) -> Tensor:
        if not logits.is_meta and (count := int(logits.isnan().sum())):
            raise ValueError(f"{type(self).__name__}.gate: {count} of {logits.numel()} mask_logits are NaN")
        return functional.hard_concrete_gate(logits) if self.estimator == "hard_concrete" else logits >= 0

    def divergence(self, prior_logits: Tensor | float) -> Tensor:
        """KL of this layer's mask from that of a prior, in nats: a float64 scalar, differentiable."""
        return functional.bernoulli_kl(self.mask_logits, prior_logits)

    def thresholded_weight(self) -> Tensor:
        """The weight of the evaluation mode, under :meth:`gate`, and NaN where the logit is NaN.

        Differentiable in weight. It is formed in each forward, so that it does not look for NaN as gate does, which
        would make the host wait for a GPU.
        """
        return self._thresholded(self.weight, self.mask_logits.detach())

    def _thresholded(self, weight: Tensor, logits: Tensor) -> Tensor:
        if self.estimator == "hard_concrete":
            return weight * functional.hard_concrete_gate(logits).to(weight.dtype)
        return torch.where(logits >= 0, weight, logits.clamp(0, 0).to(weight.dtype))  # clamp keeps NaN

    def hardened_weight(self, mask: Tensor | None = None) -> Tensor:
        """The weight, exactly 0 where ``mask`` (bool, default: the gate) prunes; a soft gate scales what is kept."""
        gate, weight = self.gate(), self.weight.detach()
        if gate.is_floating_point():
            weight = weight * gate.to(weight.dtype)
        return torch.where(gate > 0 if mask is None else mask, weight, 0.0)

    def hardened_parameter(self, mask: Tensor | None = None) -> nn.Parameter:
        """Return :meth:`hardened_weight` as a parameter that is trained if the weight is."""
        return nn.Parameter(self.hardened_weight(mask), requires_grad=self.weight.requires_grad)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = ("mask_logits", "mask_seed", "mask_draw")
        if self._blank:  # there is nothing yet that could stay: torch names what the checkpoint lacks
            self._blank = any(prefix + name not in state_dict for name in names)
        else:
            for name in names:
                state_dict.setdefault(prefix + name, getattr(self, name).detach())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._blank = self._blank or self.mask_logits.is_meta  # to_empty() gives it memory without values
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        logits = self.mask_logits.detach()
        keep = "?" if logits.is_meta or not logits.numel() else f"{torch.sigmoid(logits.float()).mean().item():.4g}"
        return f"{self._dense_repr()}, keep={keep}, estimator={self.estimator}"

    def _dense_repr(self) -> str:
        return self.dense_type.extra_repr(self)


def logits_of(op: str, keep: float | Tensor, weight: Tensor) -> Tensor:
    """Logits like ``weight`` whose sigmoid is ``keep``, a number or a tensor in the open interval (0, 1)."""
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


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    for name in HOOKS:
        setattr(new, name, getattr(old, name))


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """Return the masked layers of a model by the qualified name of their weight, each shared layer once."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"masked_layers: model must be a torch.nn.Module, got {type(model).__name__}")
    return {
        module.weight_name(name): module for name, module in model.named_modules() if isinstance(module, MaskedLayer)
    }


def layers_of(op: str, model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers of a model, at least one, for the function ``op``.

    Raises:
        TypeError: not a module.
        ValueError: no masked layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    layers = masked_layers(model)
    if not layers:
        raise ValueError(f"{op}: {type(model).__name__} has no masked layer: stochprune.convert makes them")
    return layers


@contextlib.contextmanager
def sampling(model: nn.Module, enabled: bool = True) -> Iterator[nn.Module]:
    """Make all masked layers sample masks (``enabled``) or threshold inside the context, in either mode.

    Raises:
        TypeError: a model that is not a module, ``enabled`` that is not a bool.
        ValueError: no masked layer.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"sampling: enabled must be True or False, got {enabled!r}")
    layers = list(layers_of("sampling", model).values())
    before = [layer.sample for layer in layers]
    for layer in layers:
        layer.sample = enabled
    try:
        yield model
    finally:
        for layer, sample in zip(layers, before, strict=True):
            layer.sample = sample
