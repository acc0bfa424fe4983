"""Whole modules that go: those whose output is a constant, and those whose output nothing needs."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from stochprune.shrinking.flow import Flow, Value


class Constant(nn.Module):
    """The rest of a module whose output was the same for all inputs.

    Args:
        value: the output, of size 1 along the batch and where it does not vary.
        like_input: return a tensor of the input's shape; else only the batch has the input's size, and the other
            dimensions are left to broadcasting.
    """

    value: Tensor

    def __init__(self, value: Tensor, like_input: bool) -> None:
        super().__init__()
        self.like_input = like_input
        self.register_buffer("value", value)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        value = self.value
        shape = x.shape if self.like_input else (len(x), *value.shape[1:])
        return value.expand(shape).clone()


class Unneeded(nn.Module):
    """The rest of a module whose output nothing needs: a copy of its input, which the model may write into."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x.clone()


def constant_modules(flow: Flow) -> dict[str, list[str]]:
    """Return the modules with parameters whose output is constant or not needed, by the module around them.

    Of modules one inside the other the outer one; modules that run more than once stay.
    """
    names = [call.name for call in flow.modules]
    found: list[str] = []
    for name in reversed(names):  # outer modules before those inside
        inside = any(name.startswith(f"{outer}.") for outer in found)
        works = next(flow.model.get_submodule(name).parameters(), None) is not None
        if name and name in flow.results and works and not inside and names.count(name) == 1:
            first, out = flow.results[name]
            # A constant of a constant, such as an embedding of positions, may have another length for other inputs.
            if not bool(out.live.any()) and not bool(first.known.all()):
                found.append(name)
    groups: dict[str, list[str]] = {}
    for name in found:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    return groups


def without_modules(flow: Flow, works: Callable[[nn.Module], bool]) -> tuple[nn.Module, list[str]]:
    """Return the flow's model without its constant and unneeded modules, and the names of those that went.

    Args:
        works: whether a changed model gives the same outputs; a change after which it does not is left out.
    """
    model = flow.model
    gone: list[str] = []
    if flow.refusal is not None:
        return model, gone
    for names in constant_modules(flow).values():
        for like_input in (True, False):
            changed = copy.deepcopy(model)
            for name in names:
                changed.set_submodule(name, _rest(flow.results[name][1], like_input))
            if works(changed):
                model, gone = changed, [*gone, *names]
                break
    return model, gone


def _rest(value: Value, like_input: bool) -> nn.Module:
    """Return what is left of a module with this output."""
    if not bool(value.known.all()):
        return Unneeded()
    data = value.data[:1]
    for dim in range(1, data.dim()):
        if bool((data == data.narrow(dim, 0, 1)).all()):
            data = data.narrow(dim, 0, 1)
    return Constant(data.clone(), like_input)
