"""The warning of convert for weights that it leaves without masks."""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from stochprune.nn.layer import MaskedLayer
from stochprune.nn.members import masked_layers
from stochprune.nn.obstacles import inside
from stochprune.nn.selection import Selectors, wanted

MATTERS = 1.0
"""The per cent of a model's parameters from which on its unmasked weights are worth a warning."""


class UnmaskedWeightsWarning(UserWarning):
    """Weights that one may take for masked after :func:`stochprune.convert` are not."""


@contextlib.contextmanager
def silent_about_unmasked() -> Iterator[None]:
    """Inside the block nothing is said of unmasked weights: the caller has said it, or will."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnmaskedWeightsWarning)
        yield


def warn_of_unmasked(
    model: nn.Module,
    masked: Collection[Tensor],
    include: Selectors | None,
    exclude: Selectors | None,
    obstacles: Collection[str],
    op: str = "convert",
    reason: str = "no masked layer stands for their modules",
) -> None:
    """Warn once where weights of two dimensions and more that the user wants masked are not, such as experts [E, N, K].

    Not counted are tables and norms, what is broadcast over its first dimension, of size 1, such as learnt positions,
    and layers of which :func:`select` has spoken. Below 1 % of all parameters nothing is said.

    Args:
        model: the model before its layers are replaced.
        masked: the weights that get masks.
        include, exclude: as given to convert.
        obstacles: the names of the modules that cannot be masked.
        op: the public function that the message names.
        reason: why the weights are left out.
    """
    earlier = [layer.weight for layer in masked_layers(model).values()]
    decided = {id(weight) for weight in (*masked, *earlier)}
    names: dict[Tensor, list[str]] = {}
    total = 0
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if isinstance(parameter, UninitializedParameter):
                continue
            total += 0 if parameter in names else parameter.numel()
            names.setdefault(parameter, []).append(name)
            if not _is_weight(module, parameter) or any(inside(prefix, outer) for outer in obstacles):
                decided.add(id(parameter))
    found: dict[str, list[Tensor]] = {}  # by name, with * in place of numbers
    for weight, called in names.items():
        if id(weight) not in decided and wanted(model, called, include, exclude):
            found.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", called[0]), []).append(weight)
    shares = {name: 100 * sum(weight.numel() for weight in weights) / total for name, weights in found.items()}
    if sum(shares.values()) < MATTERS:
        return
    listing = ", ".join(
        f"{name} ({len(found[name])} of {tuple(found[name][0].shape)}, {share:.1f} %)"
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
    )
    warnings.warn(
        f"{op}: {sum(shares.values()):.1f} % of all parameters are weights without masks: {reason}: {listing}. To mask "
        f"them, register a masked type (stochprune.nn.register) or write these modules with layers of torch "
        f"(stochprune.integrations.transformers masks experts of transformers); to leave them dense without this "
        f"warning, exclude them by these names",
        UnmaskedWeightsWarning,
        stacklevel=4,
    )


def warn_of_readers(
    model: nn.Module, masked: Mapping[str, nn.Module], op: str = "convert", what: str = "masks"
) -> None:
    """Warn once of modules whose forward reads the weight of a masked child itself, which runs past the mask.

    Read from the source of the forward, as in ``F.linear(x, self.qkv.weight)``; where there is none, nothing is said.

    Args:
        model: the model before its layers are replaced.
        masked: the layers that get masks, by the names of their weights.
        op: the public function that the message names.
        what: the layers get: masks, or updates.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for parent, names in weights_read_past(model, masked).items():
        found.setdefault(type(model.get_submodule(parent)).__qualname__, (parent, names))
    if found:
        listing = "; ".join(f"{', '.join(names)} of {kind}, such as {name}" for kind, (name, names) in found.items())
        warnings.warn(
            f"{op}: these modules read the weights of their children themselves, past the {what}: {listing}. "
            f"Register a masked module for each (stochprune.nn.register), or exclude these weights",
            UnmaskedWeightsWarning,
            stacklevel=4,
        )


def weights_read_past(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Return, by module name, the weights of its children that the source of its forward reads: ``["qkv.weight"]``.

    Args:
        model: a dense model.
        layers: the layers in question, by the names of their weights.
    """
    found: dict[str, list[str]] = {}
    sources: dict[type, str] = {}
    for weight, layer in layers.items():
        parent, _, child = weight.rpartition(".")[0].rpartition(".")
        reader = model.get_submodule(parent)
        # An encoder layer of torch reads them on its fast path alone, which convert forbids.
        if not child or layer is reader or isinstance(reader, nn.TransformerEncoderLayer):
            continue
        if type(reader) not in sources:
            sources[type(reader)] = _source(reader)
        source = sources[type(reader)]
        if re.search(rf"(?<!isinstance\()self\.{child}\.weight\b(?!\.(dtype|device|shape|size|ndim))", source):
            found.setdefault(parent, []).append(f"{child}.weight")
    return found


def _source(module: nn.Module) -> str:
    """The source of a module's forward; nothing where Python has none."""
    try:
        return inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return ""


def _is_weight(module: nn.Module, parameter: Tensor) -> bool:
    """Return True if a parameter may be the factor of a product: a matrix or more, and no table or norm."""
    if isinstance(module, MaskedLayer | nn.Embedding | nn.EmbeddingBag) or "norm" in type(module).__name__.lower():
        return False
    return parameter.dim() > 1 and parameter.shape[0] > 1 and sum(size > 1 for size in parameter.shape) > 1
