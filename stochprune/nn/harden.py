"""harden: replace the masked layers of a whole model by plain ones with exact zeros."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from stochprune.masks.probabilities import expected_kept
from stochprune.masks.select import check_cut, count_true, emptied, empty_layers, from_scores
from stochprune.nn.convert import _replace
from stochprune.nn.gated_branch import gated_branches
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_module import MaskedModule, MaskedParameter
from stochprune.nn.members import first_names, layers_of, once
from stochprune.nn.obstacles import COMPUTED
from stochprune.shards import refuse_managed


def harden(model: nn.Module, sparsity: float | None = None, scope: str = "global") -> nn.Module:
    """Replace the masked layers of a model by plain ones whose pruned weights are exactly 0, in place.

    Args:
        model: a converted model. If it is itself a masked layer, the plain layer is returned.
        sparsity: the fraction of weights to prune, in [0, 1): those with the smallest probabilities. Of equal
            probabilities the weight of larger magnitude is kept (for blocks and filters: of larger mean magnitude),
            then as in :func:`stochprune.masks.from_scores`. Default: prune the weights that evaluation mode prunes,
            whose probability is below one half.
        scope: ``"global"`` ranks the weights of all layers together, ``"layer"`` those of each layer separately,
            ``"row"`` those of each output (in transposed convolutions of each input channel).

    Returns:
        The model.

    Warns:
        UserWarning: nothing is pruned although the sparsity is not 0, or some weights never ran under a mask although
            others did.

    Raises:
        TypeError: a model that is not a module, a sparsity that is not a number.
        ValueError: no masked layer, gated branches in the model, NaN logits, a sparsity outside [0, 1) or for a layer
            with a fixed sparsity (n:m), an unknown scope, a weight that is computed (weight_norm, spectral_norm,
            prune), a layer left without weights, or a model that FSDP shards (see
            :func:`stochprune.distributed.hardened_state`).
    """
    way_out = "stochprune.distributed.hardened_state returns the hardened weights, for a plain model or a file"
    refuse_managed("harden", layers_of("harden", model), way_out)
    return cut(model, masks_to_cut(model, sparsity, scope))


def masks_to_cut(
    model: nn.Module, sparsity: float | None, scope: str, *, allow_empty: bool = False
) -> dict[str, Tensor]:
    """Return the masks that :func:`harden` cuts, bool by weight name, of the weights' shapes; tied weights count once.

    A weight that is kept may be exactly 0, so the weights of the hardened model do not tell its masks.

    Args:
        allow_empty: a sparsity may leave a layer without weights.
    """
    check_cut("harden", 0.0 if sparsity is None else sparsity, scope)
    layers = layers_of("harden", model)
    if gates := gated_branches(model):
        raise ValueError(f"harden: {', '.join(gates)} are gated branches: call drop_branches(model) first")
    for name, layer in layers.items():
        if not isinstance(layer.weight, nn.Parameter):
            raise ValueError(f"harden: {name} ({type(layer).__name__}) {COMPUTED}")
    distinct = once(layers, "weight")
    for name, layer in distinct.items():
        if count := count_true(layer.mask_logits.detach().isnan()):
            of = layer.mask_logits.numel()
            raise ValueError(f"harden: {count} of {of} mask_logits of {name} are NaN: go back to an earlier checkpoint")
    _warn_of_idle(layers)
    return _of_evaluation(distinct) if sparsity is None else _of_sparsity(distinct, sparsity, scope, allow_empty)


def cut(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Replace the masked layers by plain ones under the masks of :func:`masks_to_cut`, in place; return the model."""
    given: dict[int, Tensor] = {}  # the masks by the weights' ids
    weights: dict[int, nn.Parameter] = {}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in layers_of("harden", model).items():
        key = id(layer.weight)
        if name in masks:  # the first of the weight's names
            given[key] = masks[name]
        if not isinstance(layer, MaskedParameter):
            replacements[layer] = dense = layer.to_dense(given[key])
            dense.weight = weights.setdefault(key, cast(nn.Parameter, dense.weight))
            if layer.bias is not None:
                dense.bias = layer.bias  # no copy: other modules may share it
        elif key not in weights:
            weights[key] = layer.hardened_parameter(given[key])
    for module in model.modules():
        if isinstance(module, MaskedModule):
            own = {name: weights[id(layer.weight)] for name, layer in module.masks().items()}
            replacements[module] = module.with_weights(own)
    return _replace(model, replacements)


def _warn_of_idle(layers: Mapping[str, MaskedLayer]) -> None:
    """Warn of weights whose layers never sampled a mask although others did."""
    first = first_names(layers, "weight")
    drew = {first[id(layer.weight)] for layer in layers.values() if int(layer.mask_draw) or layer.sample is False}
    idle = [name for name in layers if name in first.values() and name not in drew]
    if idle and any(int(layer.mask_draw) for layer in layers.values()):
        warnings.warn(
            f"harden: {', '.join(idle)} never ran under a mask, as other layers did: where a model reads a layer's "
            f"weight itself, as in F.linear(x, layer.weight), it is not masked. Exclude such layers in convert",
            stacklevel=4,
        )


def _of_evaluation(layers: Mapping[str, MaskedLayer]) -> dict[str, Tensor]:
    """Return the masks of evaluation mode by weight name."""
    masks = {name: layer.gate() > 0 for name, layer in layers.items()}
    if empty := emptied(masks):
        raise ValueError(
            f"harden: no probability reaches one half in {', '.join(empty)}, so nothing would be kept there: give a "
            f"sparsity, with scope='layer' if necessary"
        )
    if all(count_true(mask) == mask.numel() for mask in masks.values()):
        logits = [layer.mask_logits.detach() for layer in layers.values()]
        below, count = sum(count_true(each < 0) for each in logits), sum(each.numel() for each in logits)
        warnings.warn(
            f"harden: nothing is pruned: {below} of {count} probabilities of keeping lie below one half (mean "
            f"{float(expected_kept(logits)) / max(1, count):.4f}); give a sparsity, such as harden(model, 0.9), "
            f"or train longer, or with a price on kept weights",
            stacklevel=4,
        )
    return masks


def _of_sparsity(
    layers: Mapping[str, MaskedLayer], sparsity: float, scope: str, allow_empty: bool
) -> dict[str, Tensor]:
    """Return the masks of the highest logits by weight name."""
    for name, layer in layers.items():
        if layer.own_sparsity:
            kind = type(layer).__name__
            raise ValueError(
                f"harden: {name} keeps a fixed number of weights ({kind}): give no sparsity, got {sparsity}"
            )

    def rows(name: str, values: Tensor) -> Tensor:
        """Return values of the logits' shape as the cut of each output needs them."""
        return layers[name].as_rows(values) if scope == "row" else values

    logits = {name: rows(name, layer.mask_logits.detach()) for name, layer in layers.items()}
    magnitudes = {name: layer.of_logits(layer.unmasked_weight().detach().abs()) for name, layer in layers.items()}
    ties = {name: rows(name, values) for name, values in magnitudes.items()}
    kept = from_scores(logits, sparsity, scope, ties=ties, allow_empty=True)
    masks = {name: layers[name].from_rows(mask) if scope == "row" else mask for name, mask in kept.items()}
    if not allow_empty and (empty := emptied(masks)):
        raise empty_layers("harden", "logit", logits, empty, sparsity, scope)
    if sparsity > 0 and all(count_true(mask) == mask.numel() for mask in masks.values()):
        warnings.warn(
            f"harden: nothing is pruned: a sparsity of {sparsity} rounds to no weight of a {scope}; give a larger one",
            stacklevel=4,
        )
    return {name: layers[name].of_weight(mask) for name, mask in masks.items()}
