"""add_lora and merge_lora: give the linear layers of a pruned model low-rank updates, and merge these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from stochprune import rng
from stochprune.arguments import checked
from stochprune.nn.convert import _replace
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.lora import MaskedLoRALinear, SparseLoRALinear, check_adapter
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.selection import Selectors, check_choice, wanted
from stochprune.nn.unmasked import warn_of_readers
from stochprune.shards import refuse_managed


@checked
def add_lora(
    model: nn.Module,
    rank: int = 8,
    *,
    alpha: float = 16.0,
    dropout: float = 0.0,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
    seed: int = 0,
    name: str = "",
) -> nn.Module:
    """Give the linear layers of a model low-rank updates under their masks (LoRA that stays sparse), in place.

    ::

        sp.harden(model, sparsity=0.5)  # or any model with exact zeros
        sp.nn.add_lora(model, rank=8, dropout=0.05)
        ...  # train: only lora_A and lora_B require gradients
        sp.nn.merge_lora(model)  # plain layers with the same zeros

    A plain ``nn.Linear`` becomes a :class:`SparseLoRALinear`: its mask is fixed, the zeros of its weight. A
    :class:`MaskedLinear` becomes a :class:`MaskedLoRALinear`: its mask is learnt with the update, and ``harden`` merges
    both. lora_B starts at 0, so the outputs do not change. Afterwards only lora_A, lora_B and the mask logits require
    gradients; set ``requires_grad`` of what else you train.

    Args:
        model: its layers of exactly these two types get updates; other layers stay as they are.
        rank: of the updates.
        alpha: the update is ``alpha / rank * lora_B @ lora_A``.
        dropout: the probability of dropping an input of the update in training, in [0, 1).
        include, exclude: as for :func:`stochprune.convert`.
        seed: 0 .. 2^64 - 1, of lora_A, and of the dropout of layers without a learnt mask.
        name: the name of the model, as for convert.

    Returns:
        The model. If it is itself a layer, the new layer is returned.

    Warns:
        UnmaskedWeightsWarning: the forward of a module reads the weight of such a layer itself, without its update.

    Raises:
        TypeError: an argument of another type.
        ValueError: no layer is left, a pattern that fits no layer, a weight that is shared with another module, a rank
            below 1, an alpha that is not finite, a dropout outside [0, 1), or a model that FSDP shards.
    """
    check_adapter("add_lora", rank, alpha, dropout)
    refuse_managed("add_lora", dict(model.named_modules()), "call it before shard")
    found: dict[str, nn.Linear | MaskedLinear] = {}
    for path, module in model.named_modules():
        if type(module) in (nn.Linear, MaskedLinear) and isinstance(module.weight, nn.Parameter):
            found[f"{path}.weight" if path else "weight"] = module
    check_choice("add_lora", include, exclude, [*found], [key for key, _ in model.named_parameters()])
    chosen = {weight: layer for weight, layer in found.items() if wanted(model, [weight], include, exclude)}
    if not chosen:
        raise ValueError(
            f"add_lora: no layer is left; {type(model).__name__} has {len(found)} plain or masked linear layers: "
            f"{', '.join([*found][:5])}"
        )
    warn_of_readers(model, chosen, "add_lora", "updates")
    prefix = f"{name}." if name else ""
    streams = rng.streams(prefix + weight for weight in found)
    options = {"rank": rank, "alpha": alpha, "dropout": dropout}
    updates = {weight: {**options, "stream": streams[prefix + weight]} for weight in chosen}
    return set_updates("add_lora", model, updates, seed)


def set_updates(op: str, model: nn.Module, updates: Mapping[str, Mapping[str, Any]], seed: int) -> nn.Module:
    """Give linear layers updates, in place, each with a rank, alpha, dropout and stream of its own; return the model.

    Args:
        op: the public function, for messages.
        updates: by the name of the layer's weight. The stream is that of a fixed mask's dropout; a layer with a learnt
            mask keeps its own.

    Raises:
        TypeError, ValueError: a name of no plain or masked linear layer, a tied weight, and the errors of
            :func:`check_adapter`.
    """
    modules = dict(model.named_modules())
    layers: dict[str, nn.Linear | MaskedLinear] = {}
    for weight in updates:
        layer = modules.get(weight.rpartition(".")[0])
        if type(layer) not in (nn.Linear, MaskedLinear) or not weight.endswith("weight"):
            raise ValueError(f"{op}: {weight} is no weight of a plain or masked linear layer")
        layers[weight] = layer  # type: ignore[assignment]
    _refuse_ties(model, layers)
    replacements: dict[nn.Module, nn.Module] = {}
    for weight, layer in layers.items():
        options = dict(updates[weight])
        if isinstance(layer, MaskedLinear):
            del options["stream"]
            replacements[layer] = MaskedLoRALinear.from_masked(layer, **options, seed=seed)
        else:
            replacements[layer] = SparseLoRALinear(layer, **options, seed=seed)
    own = {id(module.mask_logits) for module in model.modules() if isinstance(module, MaskedLayer)}
    own |= {id(tensor) for layer in updated_layers(model).values() for tensor in (layer.lora_A, layer.lora_B)}
    for parameter in model.parameters():
        if id(parameter) not in own:
            parameter.requires_grad_(False)
    return _replace(model, replacements)


def _refuse_ties(model: nn.Module, layers: dict[str, nn.Linear | MaskedLinear]) -> None:
    """Raise if another module has the weight of a layer too, which would not get the update."""
    owners = {id(layer.weight): (weight, layer) for weight, layer in layers.items()}
    for path, module in model.named_modules():
        for local, parameter in module._parameters.items():
            weight, layer = owners.get(id(parameter), ("", module))
            if layer is not module:
                raise ValueError(
                    f"add_lora: {weight} is tied to {path}.{local}, which would not get the update: exclude {weight}"
                )


def updated_layers(model: nn.Module) -> dict[str, SparseLoRALinear | MaskedLoRALinear]:
    """Return the layers with a low-rank update by the qualified name of their weight."""
    kinds = SparseLoRALinear | MaskedLoRALinear
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, kinds)}


def merge_lora(model: nn.Module) -> nn.Module:
    """Merge the updates of :func:`add_lora` into the weights, in place, and return the model.

    A layer with a fixed mask becomes an ``nn.Linear`` whose weight has the zeros that it had before. A layer with a
    learnt mask becomes a :class:`MaskedLinear` with the same logits and counter. What was frozen stays frozen. If the
    model is itself such a layer, the new layer is returned.

    Raises:
        TypeError: the model is not a module.
        ValueError: the model has no layer with an update, or FSDP shards it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"merge_lora: model must be a torch.nn.Module, got {type(model).__name__}")
    way_out = "stochprune.distributed.hardened_state merges the updates"
    refuse_managed("merge_lora", dict(model.named_modules()), way_out)
    replacements: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, SparseLoRALinear):
            replacements[module] = linear = module.to_linear()
            if module.bias is not None:
                linear.bias = cast(nn.Parameter, module.bias)  # no copy: other modules may share it
        elif isinstance(module, MaskedLoRALinear):
            replacements[module] = module.to_masked()
    if not replacements:
        raise ValueError(f"merge_lora: {type(model).__name__} has no layer with a low-rank update: add_lora makes them")
    return _replace(model, replacements)
