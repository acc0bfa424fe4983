"""The choice of the layers that `convert` replaces, and the reasons why it refuses some."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_module import MaskedModule
from stochprune.nn.masked_transposed import MaskedTransposedLinear
from stochprune.nn.members import masked_layers
from stochprune.nn.obstacles import find_obstacles
from stochprune.nn.registry import masked_type, weights_of

Selectors = str | type | Sequence[str | type]

_TABLES = nn.Embedding, nn.EmbeddingBag


@dataclass
class Group:
    """The modules that hold one weight, by its names; tied layers are converted together or not at all."""

    weight: Tensor
    layers: dict[str, nn.Module] = field(default_factory=dict)
    local: dict[str, str] = field(default_factory=dict)  # the name in the module: "weight", "out_proj.weight"


def select(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None,
    include: Selectors | None,
    exclude: Selectors | None,
    obstacles: Mapping[str, str],
) -> tuple[list[Group], list[str]]:
    """Return the weights to convert, and the names of all weights that could be converted.

    A weight is chosen if one of its names matches ``include`` and none matches ``exclude``. The default of ``include``
    is every weight, except embeddings that no other layer shares. With ``masks``, it is the weights that they name.
    ``obstacles`` are those of :func:`stochprune.nn.obstacles.find_obstacles`.

    Raises:
        ValueError: a pattern fits no weight, a chosen layer cannot be masked, a mask has no layer, a weight is tied to
            a parameter that cannot be masked, or no layer is left.
    """
    groups = _groups(model, obstacles)
    names = [name for group in groups for name in group.layers]
    _check_selectors(model, obstacles, names, include, exclude)

    def chosen(names: Sequence[str], default: bool) -> bool:
        return wanted(model, names, include, exclude, default)

    found = []
    for group in groups:
        lone_table = all(isinstance(layer, nn.Embedding) for layer in group.layers.values())
        if chosen([*group.layers], default=masks is not None or not lone_table):
            found.append(group)
    if masks is None:
        for name, reason in obstacles.items():
            layer = model.get_submodule(name)
            if chosen(_weights_in(model, name), default=not isinstance(layer, _TABLES)):
                where = f"{name or 'the model'} ({type(layer).__name__})"
                raise ValueError(f"convert: {where} {reason}. Or exclude it, by name or by type")
    else:
        left = [name for group in found for name in group.layers]
        for name in sorted(set(masks) - set(left)):
            outer = next((outer for outer in obstacles if name in _weights_in(model, outer)), None)
            if outer is not None:
                raise ValueError(f"convert: {name} cannot be masked: {outer or 'the model'} {obstacles[outer]}")
            if name in masked_layers(model):
                raise ValueError(f"convert: {name} is masked already; leave it out, or harden the model first")
            raise ValueError(f"convert: no layer to convert has the weight {name!r}; there are: {', '.join(left)}")
        found = [group for group in found if not masks.keys().isdisjoint(group.layers)]
    if not found:
        raise ValueError(f"convert: no layer is left to convert: {_why_nothing(model, groups, include, exclude)}")
    _refuse_shared_children(found)
    _refuse_strange_ties(model, found)
    return found, names


def _refuse_shared_children(groups: Sequence[Group]) -> None:
    """Refuse a module that masks a weight of a child while another weight of this child is masked in the child."""
    converted = {id(module) for group in groups for module in group.layers.values()}
    for group in groups:
        for name, module in group.layers.items():
            child, _, weight = group.local[name].rpartition(".")
            if child and id(module.get_submodule(child)) in converted:
                raise ValueError(
                    f"convert: {type(module).__name__} masks {name}, but {child} would be converted for its other "
                    f"weights: name all of its weights in {type(module).__name__}, or leave {child}.{weight} out"
                )


def maskable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that can be masked, without embeddings, and the masked ones; a tied one by its first name."""
    obstacles, masked = find_obstacles(model), masked_layers(model)
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, site in _sites(model).items():
        free = site.prefix not in obstacles and not isinstance(site.module, MaskedModule | nn.Embedding)
        if (free or name in masked) and isinstance(site.weight, nn.Parameter) and id(site.weight) not in seen:
            seen.add(id(site.weight))
            found[name] = site.weight
    return found


@dataclass(frozen=True)
class _Site:
    """A weight: the module that reads it, the name of that module, and the name of the weight in it."""

    prefix: str
    module: nn.Module
    local: str
    weight: Tensor | None


def _sites(model: nn.Module) -> dict[str, _Site]:
    """Return the weights of a model by name; a child's weight that an outer module reads belongs to that module."""
    found: dict[str, _Site] = {}
    for prefix, module in model.named_modules():
        for local, weight in weights_of(module).items():
            found.setdefault(f"{prefix}.{local}" if prefix else local, _Site(prefix, module, local, weight))
    return found


def _groups(model: nn.Module, obstacles: Collection[str]) -> list[Group]:
    """Return the weights that could be converted."""
    groups: dict[int, Group] = {}
    for name, site in _sites(model).items():
        masked = isinstance(site.module, MaskedLayer | MaskedModule)
        if site.weight is not None and site.prefix not in obstacles and not masked:
            group = groups.setdefault(id(site.weight), Group(site.weight))
            group.layers[name], group.local[name] = site.module, site.local
    return [*groups.values()]


def wanted(
    model: nn.Module, names: Sequence[str], include: Selectors | None, exclude: Selectors | None, default: bool = True
) -> bool:
    """Return True if ``include`` and ``exclude`` choose a weight of these names; ``default`` if include is None."""
    if not (default if include is None else any(_matches(model, name, include) for name in names)):
        return False
    return exclude is None or not any(_matches(model, name, exclude) for name in names)


def _check_selectors(
    model: nn.Module,
    obstacles: Collection[str],
    maskable: Sequence[str],
    include: Selectors | None,
    exclude: Selectors | None,
) -> None:
    """Refuse what is no pattern and no type, and patterns that fit nothing: they are misspelt."""
    refused = [name for outer in obstacles for name in _weights_in(model, outer)]
    others = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for argument, selectors, names in (
        ("include", include, [*maskable, *refused]),
        ("exclude", exclude, [*maskable, *refused, *others]),
    ):
        check_selectors(f"convert: {argument}", selectors, names, others)


def check_choice(
    op: str, include: Selectors | None, exclude: Selectors | None, names: Sequence[str], others: Sequence[str] = ()
) -> None:
    """Raise unless the arguments ``include`` and ``exclude`` of the function ``op`` are patterns or types that fit."""
    check_selectors(f"{op}: include", include, names, others)
    check_selectors(f"{op}: exclude", exclude, names, others)


def check_patterns(model: nn.Module, include: Selectors | None, exclude: Selectors | None) -> None:
    """Raise for a pattern of a score that fits no weight of the model; it may fit one that is left out anyway."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names += [f"{name}.weight" for name, _ in model.named_modules() if name]  # computed weights are no parameters
    check_choice("scores", include, exclude, names)


def check_selectors(argument: str, selectors: Selectors | None, names: Sequence[str], others: Sequence[str]) -> None:
    """Raise unless these are patterns and types, and each pattern fits one of ``names``; others are misspelt.

    ``argument`` names the public function and its argument; ``others`` are names that the message may explain.
    """
    several = [] if selectors is None else [selectors] if isinstance(selectors, str | type) else selectors
    if not isinstance(several, Sequence) or not all(isinstance(selector, str | type) for selector in several):
        raise TypeError(
            f"{argument} must be a pattern such as 'encoder.*', a type such as torch.nn.Conv2d, or a list "
            f"of these, got {selectors!r}"
        )
    for pattern in several:
        if isinstance(pattern, str) and not fnmatch.filter(names, pattern):
            raise ValueError(f"{argument} {pattern!r} fits no weight{_hint(pattern, names, others)}")


def _hint(pattern: str, names: Sequence[str], others: Sequence[str]) -> str:
    """Return names that are close to a pattern which fits none of ``names``, as the end of a message."""
    if dense := fnmatch.filter(others, pattern):
        return f" that can be masked, only {', '.join(dense[:3])}"
    near = difflib.get_close_matches(pattern, dict.fromkeys(names), n=3, cutoff=0.0)
    return f"; the nearest names are: {', '.join(near)}" if near else ""


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


def _weights_in(model: nn.Module, name: str) -> list[str]:
    """Return the names by which selectors may match a layer that cannot be masked: its parameters, and ``weight``."""
    prefix = f"{name}." if name else ""
    parameters = model.get_submodule(name).named_parameters(remove_duplicate=False)
    return [f"{prefix}weight", *(f"{prefix}{parameter}" for parameter, _ in parameters)]


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
            other = f"{prefix}.{name}" if prefix else name
            if owner is not None and other not in owner.layers:
                raise ValueError(
                    f"convert: {next(iter(owner.layers))} is tied to {other}, which cannot be masked; exclude it"
                )
