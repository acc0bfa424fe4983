"""The choice of the layers that `convert` replaces, and the reasons why it refuses some."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.utils import parametrize

from stochprune.nn.layer import MaskedLayer, masked_layers
from stochprune.nn.masked_conv import CONVOLUTIONS
from stochprune.nn.masked_embedding import MaskedEmbedding, embedding_obstacle
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.masked_transposed import MaskedTransposedLinear, is_transformers_conv1d

Selectors = str | type | Sequence[str | type]

_TYPES: tuple[type[MaskedLayer], ...] = (MaskedLinear, *CONVOLUTIONS, MaskedEmbedding)
_MASKED: dict[type[nn.Module], type[MaskedLayer]] = {kind.dense_type: kind for kind in _TYPES}
COMPUTED = "has a weight that is computed (weight_norm, spectral_norm, prune): make it permanent first"
_FUSED = "runs in one fused function of torch that takes its weights as they are"
_REFUSED = {
    nn.MultiheadAttention: f"{_FUSED}; write the attention with nn.Linear and F.scaled_dot_product_attention",
    nn.RNNBase: f"{_FUSED}, over all time steps at once",
    nn.RNNCellBase: _FUSED,
    nn.Bilinear: "has a weight of three dimensions whose product is no matrix product",
}


@dataclass
class Group:
    """The layers that share one weight, by their names of it; tied layers are converted together or not at all."""

    weight: Tensor
    layers: dict[str, nn.Module] = field(default_factory=dict)


def masked_type(layer: nn.Module) -> type[MaskedLayer] | None:
    """Return the masked layer type for a dense layer, or None. A subclass has none, since its forward may differ."""
    return MaskedTransposedLinear if is_transformers_conv1d(layer) else _MASKED.get(type(layer))


def weight_name(module: str) -> str:
    """Return the qualified name of the weight of the module called ``module``."""
    return f"{module}.weight" if module else "weight"


def select(
    model: nn.Module, masks: Mapping[str, Tensor] | None, include: Selectors | None, exclude: Selectors | None
) -> tuple[list[Group], list[str]]:
    """Return the weights to convert, and the names of all weights that could be converted.

    A weight is chosen if one of its names matches ``include`` and none matches ``exclude``. The default of ``include``
    is every weight, except embeddings that no other layer shares. With ``masks``, it is the weights that they name.

    Raises:
        ValueError: a chosen layer cannot be masked, a mask has no layer, a weight is tied to a parameter that cannot be
            masked, or no layer is left.
    """
    _check_selectors("include", include)
    _check_selectors("exclude", exclude)
    groups: dict[int, Group] = {}
    obstacles = find_obstacles(model)
    for name, module in model.named_modules():
        if masked_type(module) is not None and _obstacle(module) is None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            groups.setdefault(id(weight), Group(weight)).layers[weight_name(name)] = module

    def chosen(names: Sequence[str], default: bool) -> bool:
        return wanted(model, names, include, exclude, default)

    found = []
    for group in groups.values():
        lone_table = all(isinstance(layer, nn.Embedding) for layer in group.layers.values())
        if chosen([*group.layers], default=masks is not None or not lone_table):
            found.append(group)
    if masks is None:
        for name, reason in obstacles.items():
            layer = model.get_submodule(name)
            if chosen(_weights_of(model, name), default=not isinstance(layer, nn.Embedding)):
                where = f"{name or 'the model'} ({type(layer).__name__})"
                raise ValueError(f"convert: {where} {reason}. Or exclude it, by name or by type")
    else:
        names = [name for group in found for name in group.layers]
        for name in sorted(set(masks) - set(names)):
            outer = next((outer for outer in obstacles if name in _weights_of(model, outer)), None)
            if outer is not None:
                raise ValueError(f"convert: {name} cannot be masked: {outer or 'the model'} {obstacles[outer]}")
            if name in masked_layers(model):
                raise ValueError(f"convert: {name} is masked already; leave it out, or harden the model first")
            raise ValueError(f"convert: no layer to convert has the weight {name!r}; there are: {', '.join(names)}")
        found = [group for group in found if not masks.keys().isdisjoint(group.layers)]
    if not found:
        raise ValueError(
            f"convert: no layer is left to convert: {_why_nothing(model, groups.values(), include, exclude)}"
        )
    _refuse_strange_ties(model, found)
    return found, [name for group in groups.values() for name in group.layers]


def wanted(
    model: nn.Module, names: Sequence[str], include: Selectors | None, exclude: Selectors | None, default: bool = True
) -> bool:
    """Return True if ``include`` and ``exclude`` choose a weight of these names; ``default`` if include is None."""
    if not (default if include is None else any(_matches(model, name, include) for name in names)):
        return False
    return exclude is None or not any(_matches(model, name, exclude) for name in names)


def _check_selectors(argument: str, selectors: Selectors | None) -> None:
    several = [] if selectors is None else [selectors] if isinstance(selectors, str | type) else selectors
    if not isinstance(several, Sequence) or not all(isinstance(selector, str | type) for selector in several):
        raise TypeError(
            f"convert: {argument} must be a pattern such as 'encoder.*', a type such as torch.nn.Conv2d, or a list of "
            f"these, got {selectors!r}"
        )


def _why_nothing(
    model: nn.Module, groups: Collection[Group], include: Selectors | None, exclude: Selectors | None
) -> str:
    there = ", ".join(name for group in groups for name in group.layers)
    if there and (include is not None or exclude is not None):
        return f"include {include!r} and exclude {exclude!r} choose none of {there}"
    if there:
        return f"of {there}, which are embeddings, only those that include or masks name"
    if any(isinstance(module, MaskedLayer) for module in model.modules()):
        return "its layers are masked already; harden the model first"
    return f"{type(model).__name__} has no linear or convolutional layer of torch"


def find_obstacles(model: nn.Module) -> dict[str, str]:
    """Return the reason for each layer that cannot be masked, by name; layers inside such a layer are left out."""
    obstacles: dict[str, str] = {}
    for name, module in model.named_modules():
        reason = _obstacle(module)
        if reason and not any(inside(name, outer) for outer in obstacles):
            obstacles[name] = reason
    return obstacles


def _obstacle(module: nn.Module) -> str | None:
    """Return why a layer cannot be masked; None if it can, or if it is of no type that has masked layers."""
    for kind, reason in _REFUSED.items():
        if isinstance(module, kind):
            return reason
    base = next((kind.__name__ for kind in _MASKED if isinstance(module, kind)), None)
    if base is None:
        return None
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "is lazy: run the model once first"
    if parametrize.is_parametrized(module) or module._parameters.get("weight") is None:
        return COMPUTED
    if not module.weight.is_floating_point():  # type: ignore[operator]
        return f"has a weight of {module.weight.dtype}: convert the model before it is quantised"
    if masked_type(module) is None:
        return f"is a subclass of {base}, whose forward may differ"
    return embedding_obstacle(module) if isinstance(module, nn.Embedding) else None


def inside(name: str, outer: str) -> bool:
    """Return True if the module or parameter ``name`` is ``outer`` or lies in it."""
    return not outer or name == outer or name.startswith(f"{outer}.")


def _weights_of(model: nn.Module, name: str) -> list[str]:
    """Return the names by which selectors may match a layer that cannot be masked: its parameters, and ``weight``."""
    prefix = f"{name}." if name else ""
    parameters = model.get_submodule(name).named_parameters(remove_duplicate=False)
    return [weight_name(name), *(f"{prefix}{parameter}" for parameter, _ in parameters)]


def _matches(model: nn.Module, name: str, selectors: Selectors) -> bool:
    """Return True if a weight's name matches a pattern, or if a module that contains it is of a given type."""
    parts = name.split(".")
    for selector in [selectors] if isinstance(selectors, str | type) else selectors:
        if isinstance(selector, str):
            if fnmatch.fnmatchcase(name, selector):
                return True
        elif any(isinstance(model.get_submodule(".".join(parts[:i])), selector) for i in range(len(parts))):
            return True
    return False


def _refuse_strange_ties(model: nn.Module, groups: Sequence[Group]) -> None:
    """Raise if a weight is shared in a way that masks do not support.

    A weight that is also a parameter of another module would lose this tie in harden. A weight that one layer uses
    transposed and another one does not would have two masks.
    """
    owners = {id(group.weight): group for group in groups}
    for group in groups:
        names = {masked_type(layer) is MaskedTransposedLinear: name for name, layer in group.layers.items()}
        if len(names) == 2:
            raise ValueError(f"convert: {names[True]} is tied to {names[False]}, which has it transposed; exclude both")
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            owner = owners.get(id(parameter))
            if owner is not None and (name != "weight" or module not in owner.layers.values()):
                other = f"{prefix}.{name}" if prefix else name
                raise ValueError(
                    f"convert: {next(iter(owner.layers))} is tied to {other}, which cannot be masked; exclude it"
                )
