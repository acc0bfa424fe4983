"""The knowledge about each tensor of a forward pass: the unit of each element, and whether it is a constant.

A *unit* is what can be removed: an output of a linear layer, a filter, an attention head. Each unit has an integer
label, and each tensor of the forward pass has a label for each of its elements; label 0 is of elements that stay. Where
two tensors are added, their units must go together: the pair of labels goes into ``pairs``.

An element is *known* if it does not depend on the model's input, such as the output of a row of zeros: the bias. It
is *needed* if an output of the model depends on it. A unit can go if no element of it is both needed and unknown: the
known ones go into the biases that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.shrinking.recorder import Call, ModuleCall, Recorder, call_model, copied, tensors_in

Pull = Callable[[], None]
Result = tuple[list["Value"], Pull | None]  # the values of a call's results, and how needs go back to its arguments


@dataclass(eq=False)
class Value:
    """A tensor at one moment of the forward pass; all fields have its shape.

    Attributes:
        labels: int64, the unit of each element.
        known: bool, whether the element is the same for all inputs of the model.
        data: the tensor's elements at that moment; of use where they are known.
        needed: bool, whether an output of the model depends on the element; filled in by :meth:`Flow.trace`.
    """

    labels: Tensor
    known: Tensor
    data: Tensor
    needed: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.needed = torch.zeros(self.data.shape, dtype=torch.bool, device=self.data.device)

    @property
    def live(self) -> Tensor:
        """Return which elements are needed and not known, bool."""
        return self.needed & ~self.known


@dataclass(eq=False)
class Mixing:
    """A product with a weight whose rows are units of the output and whose columns are units of the input.

    Attributes:
        weight, bias: the layer's parameters; of ``weight``, ``row`` and ``column`` are the dimensions.
        cols, rows: labels [K] of the input's channels and [N] of the output's, both along ``axis``, from the end.
        x, y: the input and the output.
        padded: whether zeros are put around the input, so that a constant input gives no constant output.
        grouped: whether the channels are in groups, of which only whole ones go.
    """

    call: Call
    weight: Tensor
    bias: Tensor | None
    row: int
    column: int
    cols: Tensor
    rows: Tensor
    x: Value
    y: Value
    axis: int
    padded: bool
    grouped: bool


@dataclass(eq=False)
class Flow(Recorder):
    """Follow units, constants and needs through one forward pass of a model in evaluation mode.

    Attributes:
        rule: gives the values of a call's results, see :mod:`stochprune.shrinking.trace`.
        values: of each call in ``calls``, the values of its results.
        arguments: of each call, the values of its arguments.
        results: of each module that returns one tensor, the values of its first argument and of the result.
        mixings: the products with weights.
        pairs: labels [2, P] that must go together, in parts.
        locks: labels that stay, with the reason.
        dims: by id of a parameter or buffer, the labels along its dimensions; under the key None those of its elements,
            if it takes part in sums and the like.
        counts: attributes of modules that count units, such as ``groups`` of a convolution, with the units' labels.
        origins: modules with the labels of their units, and their results.
        moves: by index in ``calls``, the values whose elements a call moves.
        strange: calls of functions without a rule, with the values of arguments and results.
        tables: ids of weights that embeddings read.
        refusal: why the whole model stays as it is; None if it may be shrunk.
    """

    rule: Callable[[Flow, Call], Result] = field(kw_only=True)
    values: list[list[Value]] = field(default_factory=list)
    arguments: list[list[Value]] = field(default_factory=list)
    results: dict[str, tuple[Value, Value]] = field(default_factory=dict)
    mixings: list[Mixing] = field(default_factory=list)
    pairs: list[Tensor] = field(default_factory=list)
    locks: list[tuple[Tensor, str]] = field(default_factory=list)
    dims: dict[int, dict[int | None, Tensor]] = field(default_factory=dict)
    counts: list[tuple[str, str, Tensor]] = field(default_factory=list)
    origins: list[tuple[str, Tensor, Value]] = field(default_factory=list)
    moves: dict[int, list[Value]] = field(default_factory=dict)
    strange: list[tuple[Call, list[Value], list[Value]]] = field(default_factory=list)
    tables: set[int] = field(default_factory=set)
    refusal: str | None = None
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._state = {id(t) for t in (*self.model.parameters(), *self.model.buffers())}
        plain = [t for module in self.model.modules() for t in vars(module).values() if isinstance(t, Tensor)]
        self._constants = {id(t) for t in plain}
        self._current: dict[int, Value] = {}
        self._stale: set[int] = set()
        self._alive: list[Tensor] = []
        self._aliases: dict[int, list[int]] = {}
        self._pulls: list[Pull] = []

    def trace(self, example_inputs: Any) -> Flow:
        """Run the model on the example inputs, forward, then find backwards what the outputs need."""
        example_inputs = copied(example_inputs)
        for tensor in tensors_in(example_inputs):
            self._set(tensor, self.fixed(tensor))
        with self.recording():
            outputs = call_model(self.model, example_inputs)
        for tensor in tensors_in(outputs):
            value = self.value(tensor)
            value.needed.fill_(True)
            self.lock(value.labels, "is an output of the model")
        for pull in reversed(self._pulls):
            pull()
        for call, values, outs in self.strange:
            if any(bool(out.live.any()) for out in outs):
                for value in values:
                    self.lock(value.labels, f"goes into {call.where}, which shrink has no rule for")
        return self

    # What a rule asks for.

    def value(self, tensor: Tensor) -> Value:
        """Return the value of a tensor now."""
        key = id(tensor)
        if key in self._stale:
            self.refuse("reads a tensor that was written in place through a view of it")
        if key in self._current:
            return self._current[key]
        if key in self._state:
            value = self._of_parameter(tensor)
        else:
            value = self.fixed(tensor, known=key in self._constants)
            if key not in self._constants:
                self.refuse("reads a tensor that was computed out of sight of torch functions")
        self._set(tensor, value)
        return value

    def is_state(self, tensor: Any) -> bool:
        """Return True for a parameter or buffer of the model."""
        return isinstance(tensor, Tensor) and id(tensor) in self._state

    def fixed(self, tensor: Tensor, known: bool = False) -> Value:
        """Return a value whose elements all stay."""
        zero = torch.zeros((), dtype=torch.int64, device=tensor.device).expand(tensor.shape)
        return Value(zero, torch.full((), known, device=tensor.device).expand(tensor.shape), tensor.detach().clone())

    def made(self, tensor: Tensor, labels: Tensor, known: Tensor) -> Value:
        """Return the value of a call's result; ``labels`` and ``known`` may be expanded to its shape."""
        data = tensor.detach().clone() if bool(known.any()) else tensor
        return Value(labels.expand(tensor.shape), known.expand(tensor.shape), data)

    def fresh(self, count: int, device: torch.device) -> Tensor:
        """Return new labels, int64 [count]."""
        self.count += count
        return torch.arange(self.count - count, self.count, device=device)

    def dim(self, tensor: Tensor, dim: int) -> Tensor:
        """Return the labels along one dimension of a parameter or buffer."""
        labels = self.dims.setdefault(id(tensor), {})
        if dim not in labels:
            labels[dim] = self.fresh(tensor.shape[dim], tensor.device)
            self._keep_if_read_in_two_ways(tensor)
        return labels[dim]

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Note that the units of two label tensors, of one shape after broadcasting, go together or stay together."""
        left, right = torch.broadcast_tensors(left, right)
        for dim in range(left.dim()):
            if left.stride(dim) == 0 == right.stride(dim) and left.shape[dim]:
                left, right = left.narrow(dim, 0, 1), right.narrow(dim, 0, 1)
        pairs = torch.stack([left, right]).reshape(2, -1)
        self._fixed(pairs[1][pairs[0] == 0])
        self._fixed(pairs[0][pairs[1] == 0])
        pairs = pairs[:, (pairs[0] != pairs[1]) & (pairs != 0).all(0)]
        if pairs.numel():
            self.pairs.append(pairs.unique(dim=1))

    def lock(self, labels: Tensor, reason: str) -> None:
        """Keep units, for a reason that continues the sentence "the unit ..."."""
        labels = compact(labels).unique()
        if len(labels := labels[labels != 0]):
            self.locks.append((labels, reason))

    def refuse(self, reason: str) -> None:
        """Keep the whole model, for a reason that continues the sentence "the model ..."."""
        self.refusal = self.refusal or reason

    def counted(self, call: Call, attribute: str, labels: Tensor) -> None:
        """Note that the calling module has the number of these units [G] as an attribute."""
        if getattr(self.model.get_submodule(call.module), attribute, None) == len(labels):
            self.counts.append((call.module, attribute, labels))
        else:
            self.lock(labels, f"is counted by an argument of {call.where}")

    def along(self, labels: Tensor, axis: int) -> Tensor:
        """Return one label for each index of an axis, [C], after uniting all labels with that index."""
        rows = compact(labels).movedim(axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        if len(rows) > 1:
            self.unite(rows[1:], rows[:1])
        return rows[0].expand(labels.shape[axis])

    # Bookkeeping.

    def before(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor in tensors_in((args, kwargs)):
            if not self.is_state(tensor) and id(tensor) not in self._stale:
                self.value(tensor)

    def observe(self, call: Call) -> None:
        results = tensors_in(call.out)
        arguments = [self._current[id(t)] for t in tensors_in((call.args, call.kwargs)) if id(t) in self._current]
        values, pull = self.rule(self, call)
        if pull is not None:
            self._pulls.append(pull)
        if results:
            self.values.append(values)
            self.arguments.append(arguments)
        if call.written:
            self._mark_stale(call.args[0])
            if call.name == "setitem":
                self._set(call.args[0], self.fixed(call.args[0], known=True))
        for tensor, value in zip(results, values, strict=True):
            self._set(tensor, value)

    def left(self, call: ModuleCall) -> None:
        if isinstance(call.out, Tensor) and call.first is not None:
            first, out = self._current.get(id(call.first)), self._current.get(id(call.out))
            if first is not None and out is not None:
                self.results[call.name] = first, out

    def _set(self, tensor: Tensor, value: Value) -> None:
        self._alive.append(tensor)  # so that no other tensor gets its id
        self._current[id(tensor)] = value
        self._stale.discard(id(tensor))
        self._aliases.setdefault(tensor.untyped_storage().data_ptr(), []).append(id(tensor))

    def _mark_stale(self, written: Tensor) -> None:
        if self.is_state(written):
            self.refuse("writes a parameter or buffer in its forward pass")
        self._stale.update(self._aliases.get(written.untyped_storage().data_ptr(), []))

    def _of_parameter(self, tensor: Tensor) -> Value:
        labels = self.dims.setdefault(id(tensor), {})
        if None not in labels:
            labels[None] = self.fresh(tensor.numel(), tensor.device).reshape(tensor.shape)
            self._keep_if_read_in_two_ways(tensor)
        return Value(labels[None], torch.ones((), dtype=torch.bool, device=tensor.device).expand(tensor.shape), tensor)

    def _keep_if_read_in_two_ways(self, tensor: Tensor) -> None:
        labels = self.dims[id(tensor)]
        if None in labels and len(labels) > 1:
            for of_dim in labels.values():
                self.lock(of_dim, "belongs to a tensor that is both a layer's weight and part of other sums")

    def _fixed(self, labels: Tensor) -> None:
        self.lock(labels, "is combined with a tensor of a fixed size")


def compact(labels: Tensor) -> Tensor:
    """Return the tensor with size 1 along the dimensions that it is expanded along."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if stride == 0 and size > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def vary(labels: Tensor, dims: Iterable[int]) -> bool:
    """Return True if labels differ along any of the dimensions."""
    small = compact(labels)
    return any(small.shape[d] > 1 and bool((small != small.narrow(d, 0, 1)).any()) for d in dims)


def locations(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """Return, by id of a parameter or buffer, all modules and attributes that hold it."""
    found: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                found.setdefault(id(tensor), []).append((name, attribute))
    return found
