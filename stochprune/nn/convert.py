"""convert: replace the layers of a whole model by masked ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stochprune import rng
from stochprune.nn.fast_path import settle_fast_paths
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.masked_module import MaskedModule
from stochprune.nn.masked_transposed import MaskedTransposedLinear
from stochprune.nn.nm import NMMaskedLinear, NMMaskedTransposedLinear
from stochprune.nn.obstacles import find_obstacles
from stochprune.nn.packed_layers import unpacked_layers
from stochprune.nn.registry import Masked, masked_type
from stochprune.nn.selection import Group, Selectors, select
from stochprune.nn.structured import FILTERS, StructuredMaskedLinear
from stochprune.nn.unmasked import warn_of_readers, warn_of_unmasked


def convert(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    keep_kept: float = 0.95,
    keep_pruned: float = 0.05,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
    pattern: str | None = None,
    allow_subclasses: bool = False,
    seed: int = 0,
    name: str = "",
    logits_dtype: torch.dtype | None = None,
) -> nn.Module:
    """Replace the layers of a model that have weight matrices by masked ones, in place.

    The masked layers use the same parameters and hooks, without copies. A shared layer stays one layer. Layers that
    share a weight also share its logits and its stream, so they have one mask. A stream is computed from the qualified
    name of a weight: two models with equal names and one seed sample the same masks. Give each model a ``name``, for
    example the two networks of a GAN, or a seed of its own::

        sp.convert(generator, seed=0, name="generator")
        sp.convert(discriminator, seed=0, name="discriminator")

    Converted are linear, convolutional and transposed convolutional layers, ``nn.Bilinear``, the projections of
    ``nn.MultiheadAttention``, recurrent modules and their cells, ``Conv1D`` of transformers, and what
    :func:`stochprune.nn.register` adds. Embeddings are converted only if they share their weight with one of these, or
    if ``masks`` or ``include`` name them. Parametrised layers, and subclasses whose forward is their own, are refused
    by name, unless they are excluded. A mask acts in the forward of its layer: where a module reads the weight of a
    layer itself, as in ``F.linear(x, self.layer.weight)``, exclude the layer or register the module.

    Args:
        model: the model. If it is itself a layer, the masked layer is returned.
        masks: bool masks by weight name (``"encoder.0.weight"``), True where kept; or floating tensors, the initial
            keep probabilities themselves (see :func:`stochprune.masks.keep_probabilities`). Only the named layers are
            converted; one name of a tied weight is enough. Without masks all weights count as kept.
        keep_kept, keep_pruned: the initial keep probabilities of the weights that the mask keeps and prunes.
        include, exclude: shell patterns on weight names, or types of the layer or of a module around it. Only weights
            that match ``include`` and not ``exclude`` are converted; a tied weight matches by any of its names. A
            pattern that fits no weight is refused.
        pattern: for linear layers, masks that keep n of every m neighbours (``"2:4"``, see
            :class:`stochprune.nn.NMMaskedLinear`) or whole ``"rows"``, ``"columns"`` or blocks such as ``"16x16"``
            (:class:`stochprune.nn.StructuredMaskedLinear`); ``"rows"`` are the filters of convolutions too
            (:class:`stochprune.nn.FilterMaskedConv2d`). Other layers must be excluded.
        allow_subclasses: treat a subclass of a layer, such as ``timm.layers.Linear``, like the layer itself. It must
            compute what the layer computes; ``harden`` returns the layer. Subclasses that override nothing need no
            permission.
        seed: the seed of the run, 0 .. 2^64 - 1.
        name: the name of the model, a prefix of its weights' names in streams: ``"generator.0.weight"``. Streams are
            not in the state_dict, so use the same name when you load a checkpoint.
        logits_dtype: of the logits; default: that of each weight. Give a bfloat16 model ``torch.float32`` logits: in
            bfloat16, steps of a usual size are lost to rounding.

    Returns:
        The model. It may be on the meta device; then load a checkpoint of a converted model with ``assign=True``.

    Warns:
        UnmaskedWeightsWarning: weights get no mask because their modules are not layers of torch, and they are at least
            1 % of all parameters; the message lists them with their shares. No warning if ``masks`` are given. Or the
            forward of a module reads the weight of a masked child itself, past the mask.

    Raises:
        TypeError: an argument of another type.
        ValueError: a pattern that fits no weight, a mask whose name or shape fits no layer, different masks for one
            tied weight, a layer that cannot be masked, a weight tied to such a layer, nothing to convert, or
            probabilities outside (0, 1).
    """
    _check_arguments(model, masks, keep_kept, keep_pruned, pattern, allow_subclasses, name)
    packed = unpacked_layers(model)
    model = _replace(model, packed)
    try:
        replacements = _replacements(
            model,
            masks,
            keep_kept=keep_kept,
            keep_pruned=keep_pruned,
            pattern=pattern,
            selectors=(include, exclude),
            allow_subclasses=allow_subclasses,
            options={"seed": seed, "logits_dtype": logits_dtype},
            prefix=f"{name}." if name else "",
        )
    except BaseException:
        _replace(model, {plain: layer for layer, plain in packed.items()})
        raise
    return _replace(model, replacements)


def unpack(model: nn.Module) -> nn.Module:
    """Replace the layers of bitsandbytes by plain layers with packed weights, in place; return the model."""
    return _replace(model, unpacked_layers(model))


def _replacements(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None,
    *,
    keep_kept: float,
    keep_pruned: float,
    pattern: str | None,
    selectors: tuple[Selectors | None, Selectors | None],
    allow_subclasses: bool,
    options: Mapping[str, Any],
    prefix: str,
) -> dict[nn.Module, nn.Module]:
    """Return the masked layers by the layers that they stand for; ``options`` are those of every masked layer."""
    include, exclude = selectors
    obstacles = find_obstacles(model, allow_subclasses)
    groups, names = select(model, masks, include, exclude, obstacles)
    streams = rng.streams(prefix + weight for weight in names)
    if masks is None:
        warn_of_unmasked(model, [group.weight for group in groups], include, exclude, obstacles)
    warn_of_readers(model, {name: layer for group in groups for name, layer in group.layers.items()})
    replacements: dict[nn.Module, nn.Module] = {}
    for group in groups:
        keep = keep_kept if masks is None else _probabilities(group, masks, keep_kept, keep_pruned)
        first: MaskedLayer | None = None
        for weight, layer in group.layers.items():
            kind, own = _kind(weight, layer, pattern)
            own = {**options, "stream": streams[prefix + weight], **own}
            try:
                if issubclass(kind, MaskedModule):
                    twin = replacements.get(layer) or kind.from_dense(layer, names=())
                    assert isinstance(twin, MaskedModule)
                    replacements[layer] = twin
                    masked: MaskedLayer = twin.mask_weight(group.local[weight], keep, **own)
                else:
                    masked = replacements[layer] = kind.from_dense(layer, keep, **own)
            except (TypeError, ValueError) as error:
                raise type(error)(f"convert: {weight}: {error}") from error
            first = first or masked
            masked.mask_logits, masked.stream = first.mask_logits, first.stream
    return replacements


def _check_arguments(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None,
    keep_kept: float,
    keep_pruned: float,
    pattern: str | None,
    allow_subclasses: bool,
    name: str,
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    if masks is not None and not isinstance(masks, Mapping):
        kind = type(masks).__name__
        raise TypeError(f"convert: masks must be a dictionary of bool tensors by weight name, got {kind}")
    for argument, text in (("pattern", pattern), ("name", name)):
        if not isinstance(text, str) and not (argument == "pattern" and text is None):
            raise TypeError(f"convert: {argument} must be a string, got {text!r}")
    if not isinstance(allow_subclasses, bool):
        raise TypeError(f"convert: allow_subclasses must be True or False, got {allow_subclasses!r}")
    for argument, keep in (("keep_kept", keep_kept), ("keep_pruned", keep_pruned)):
        if isinstance(keep, bool) or not isinstance(keep, int | float | np.floating):
            raise TypeError(f"convert: {argument} must be a number strictly between 0 and 1, got {keep!r}")
        if not 0 < keep < 1:
            raise ValueError(f"convert: {argument} must lie strictly between 0 and 1, got {keep}")


def _kind(name: str, layer: nn.Module, pattern: str | None) -> tuple[Masked, dict[str, Any]]:
    """Return the masked type for a dense layer, and the arguments that only this type takes."""
    kind = masked_type(layer)
    assert kind is not None
    if pattern is None:
        return kind, {}
    if pattern == "rows" and kind in FILTERS:
        return FILTERS[kind], {}
    if issubclass(kind, MaskedModule) and (own := kind.pattern_options(pattern)) is not None:
        return kind, own
    if kind is MaskedTransposedLinear and ":" in pattern:
        return NMMaskedTransposedLinear, {"pattern": pattern}
    if kind is not MaskedLinear:
        raise ValueError(f"convert: pattern supports linear layers only, {name} is {type(layer).__name__}: exclude it")
    if ":" in pattern:
        return NMMaskedLinear, {"pattern": pattern}
    return StructuredMaskedLinear, {"structure": pattern}


def _probabilities(group: Group, masks: Mapping[str, Tensor], keep_kept: float, keep_pruned: float) -> Tensor:
    """Return the keep probabilities of one weight, float64."""
    shape, given = group.weight.shape, {name: masks[name] for name in group.layers if name in masks}
    for name, mask in given.items():
        if not isinstance(mask, Tensor) or mask.shape != shape or not (mask.dtype == torch.bool or _between(mask)):
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise ValueError(
                f"convert: the mask of {name} must be a bool tensor {tuple(shape)}, got {got}; a floating one holds "
                "probabilities of keeping, strictly between 0 and 1"
            )
    (name, mask), *others = given.items()
    for other, another in others:
        if not torch.equal(mask, another):
            raise ValueError(f"convert: {name} and {other} are one weight, but their masks differ")
    if mask.is_floating_point():
        return mask.double()
    kept = torch.full(shape, keep_kept, dtype=torch.float64, device=mask.device)
    return torch.where(mask, kept, keep_pruned)


def _between(values: Tensor) -> bool:
    """Return True for a floating tensor with all its values strictly between 0 and 1."""
    return values.is_floating_point() and bool(((values > 0) & (values < 1)).all())


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    roots = model, *replacements.values()  # a masked module may hold layers that are replaced too
    return exchange(model, replacements, (module for root in roots for module in root.modules()))


def exchange(model: nn.Module, replacements: Mapping[nn.Module, nn.Module], parents: Iterable[nn.Module]) -> nn.Module:
    """Replace modules that are children of ``parents`` under all of their names, in place; return the model."""
    for parent in dict.fromkeys(parents):
        for name, child in parent._modules.items():  # named_children() would pass over a layer's second name
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    model = replacements.get(model, model)
    if replacements:
        settle_fast_paths(model)
    return model
