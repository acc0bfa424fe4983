"""A forward pass as the list of torch functions that it calls."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

# Methods behind operators: x + y, y + x and x += y are all add.
_OPERATORS = {
    prefix + name: name
    for name in ("add", "sub", "mul", "div", "truediv", "matmul", "pow", "and", "or", "xor")
    for prefix in ("i", "r")
}


@dataclass(eq=False)
class Call:
    """One call of a torch function, in the module whose ``forward`` makes it."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    module: str
    written: bool = False  # the first argument was changed in place

    @property
    def where(self) -> str:
        return f"{self.name} in {self.module or 'the model'}"


@dataclass(eq=False)
class ModuleCall:
    """One call of a module: its first tensor argument and its result."""

    name: str
    first: Tensor | None
    out: Any


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, dictionaries and objects with attributes, in their order."""
    return [*_tensors(values, set())]


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen and not isinstance(value, str | nn.Module | type):
        seen.add(id(value))  # an object may contain itself
        inside: Any = [*getattr(value, "__dict__", {}).values()]
        if isinstance(value, Mapping):
            inside = [*value.values()]
        elif isinstance(value, tuple | list):
            inside = value
        for part in inside:
            yield from _tensors(part, seen)


def name_of(function: Callable[..., Any]) -> str:
    """Return one name for all spellings of a function: ``x.relu_()`` and ``F.relu(x)`` are both relu."""
    name = function.__name__
    if name == "__get__":  # a property, such as x.mT
        name = function.__self__.__name__  # type: ignore[attr-defined]
    name = name.strip("_")
    return _OPERATORS.get(name, name)


@dataclass(eq=False)
class Recorder(TorchFunctionMode):
    """Record the torch functions and the modules that a model calls, in their order.

    Attributes:
        calls: the functions that return tensors.
        modules: the modules, each after those inside it.
    """

    model: nn.Module
    calls: list[Call] = field(default_factory=list)
    modules: list[ModuleCall] = field(default_factory=list)
    _path: list[str] = field(default_factory=lambda: [""])

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = args[0]._version if args and isinstance(args[0], Tensor) else None
        self.before(func, args, kwargs)
        call = Call(name_of(func), func, args, kwargs, None, self._path[-1])
        self.calls.append(call)
        call.out = func(*args, **kwargs)
        if not tensors_in(call.out):
            self.calls.pop()
        call.written = before is not None and args[0]._version != before
        self.observe(call)
        return call.out

    def before(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See the arguments of a call before the function runs, which may change them."""

    def observe(self, call: Call) -> None:
        """See a call with its result."""

    def left(self, call: ModuleCall) -> None:
        """See a call of a module with its result."""

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record inside the context, without gradients; the global random state afterwards is that from before."""
        handles: list[RemovableHandle] = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True))
            handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True))
        try:
            with torch.no_grad(), unchanged_random_state(self.model), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda module, args: self._path.append(name)

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            self._path.pop()
            first = next(iter(tensors_in((args, kwargs))), None)
            self.modules.append(ModuleCall(name, first, out))
            self.left(self.modules[-1])

        return leave


@contextlib.contextmanager
def unchanged_random_state(model: nn.Module) -> Iterator[None]:
    """Restore torch's global random generators, of the CPU and of the model's GPUs, at the end of the context."""
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    cpu, states = torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in gpus}
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        for device, state in states.items():
            torch.cuda.set_rng_state(state, device)


def call_model(model: nn.Module, example_inputs: Any) -> Any:
    """Call a model with one tensor, a tuple or list of positional arguments, or a dictionary of keyword arguments.

    Modules of ``torch.compile`` run as they were before, because a compiled one hides its functions.
    """
    with torch.compiler.set_stance("force_eager"):
        if isinstance(example_inputs, Mapping):
            return model(**example_inputs)
        if isinstance(example_inputs, tuple | list):
            return model(*example_inputs)
        return model(example_inputs)


def copied(example_inputs: Any) -> Any:
    """Return the example inputs with copies of their tensors, for a model that may write into its input."""
    return mapped(example_inputs, lambda tensor: tensor.detach().clone())


def mapped(example_inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of the example inputs, also of objects such as a cache, with other tensors in it."""
    return copy.deepcopy(example_inputs, {id(tensor): function(tensor) for tensor in tensors_in(example_inputs)})
