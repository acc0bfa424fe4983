"""``shrink``: a smaller model with the same outputs."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from stochprune.nn.fast_path import settle_fast_paths
from stochprune.nn.gated_branch import GatedBranch
from stochprune.nn.layer import MaskedLayer
from stochprune.shards import is_split
from stochprune.shrinking.attention import close_attention, open_attention
from stochprune.shrinking.branches import without_modules
from stochprune.shrinking.edit import cut
from stochprune.shrinking.flow import Flow
from stochprune.shrinking.plan import Plan, kept_part, kept_shape
from stochprune.shrinking.recorder import Call, Recorder, call_model, copied, tensors_in, unchanged_random_state
from stochprune.shrinking.report import Kept, ShrinkReport
from stochprune.shrinking.rules import element_ids, moved_by
from stochprune.shrinking.trace import takes_sizes, trace

TOLERANCE = 1e-5
REPETITIONS = 5


def shrink(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Remove what cannot change the outputs of a pruned model: units, channels, heads and branches.

    A unit (an output of a linear layer, a filter of a convolution, an attention head) goes if its output is the same
    for all inputs, such as that of a row of zeros, or if all weights that read it are zero. Its constant goes into the
    biases of the layers that read it. Where that is not exact, as in a convolution that pads its input with zeros, one
    constant channel stays and carries the constants of all others. Units that are added to each other go together or
    not at all. A module whose whole output is constant or unneeded goes whole.

    The shrunk model computes the same function in evaluation mode, for inputs of the example's shape with any batch
    size. It is a copy with smaller layers of the same types, so it can be trained, saved, compiled and exported. Its
    modules are in the modes of the originals. :class:`torch.nn.MultiheadAttention` that loses heads is replaced by
    :class:`stochprune.shrinking.Attention`. In training mode a model with batch normalisation or dropout may differ.

    Args:
        model: a model with plain layers, such as :func:`stochprune.harden` returns; it is left untouched.
        example_inputs: a tensor, a tuple of positional arguments, or a dictionary of keyword arguments, on the model's
            device. The model runs on them a few times, in evaluation mode. Give two different examples or more: what
            differs only between examples is not seen in one. Give a model of transformers ``use_cache=False`` too:
            else it returns the keys and values of all heads, which then stay.

    Returns:
        The smaller model, which shares no parameters with the one given. Its attribute ``shrink_report`` is a
        :class:`ShrinkReport`, which says what went, what stayed and why, and how long both models take::

            smaller = sp.shrink(model, x)
            print(smaller.shrink_report)

    Raises:
        TypeError: a model that is not a module.
        ValueError: a model with masked layers or gated branches, or one that is split over processes (see
            :func:`stochprune.distributed.shrink`); inputs or outputs without a tensor, empty or sparse inputs, inputs
            on which the model fails.
        RuntimeError: the smaller model's outputs on the example inputs differ from those of the model by more than 1e-5
            of the largest (eight times the dtype's precision, where that is more).
    """
    _check(model, example_inputs)
    original = copy.deepcopy(model).eval()
    try:
        reference = _outputs(original, example_inputs)
    except Exception as error:
        name = type(model).__name__
        raise ValueError(f"shrink: {name} fails on the example inputs: {type(error).__name__}: {error}") from error
    if not reference:
        raise ValueError(f"shrink: {type(model).__name__} returned no tensor for the example inputs")
    smaller = copy.deepcopy(original)
    replaced = open_attention(smaller)
    removed: list[str] = []
    while True:
        flow = trace(smaller, example_inputs)
        smaller, gone = without_modules(flow, lambda changed: _equal(reference, _try(changed, example_inputs)))
        removed += gone
        if not gone:
            smaller, plan = _without_units(flow, example_inputs)
            if smaller is flow.model:
                break
    close_attention(smaller, replaced, original)
    settle_fast_paths(smaller)
    if not _equal(reference, found := _outputs(smaller, example_inputs)):
        raise RuntimeError(
            f"shrink: the outputs of the smaller {type(model).__name__} differ from those of the model by "
            f"{_difference(reference, found):.2g} of the largest, more than {TOLERANCE:g}: please report this model"
        )
    _set_modes(smaller, model)
    smaller.shrink_report = _report(model, smaller, example_inputs, removed, plan)  # type: ignore[assignment]
    return smaller


def _check(model: nn.Module, example_inputs: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"shrink: model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if is_split(module):
            raise ValueError(
                f"shrink: {name or 'the model'} is split over processes, but this shrink runs a whole model in one: "
                f"stochprune.distributed.shrink shrinks one that fully_shard splits, block by block. Or load the "
                f"pruned weights into a plain model on a CPU, and shrink that. Of a masked model "
                f"stochprune.distributed.save_hardened writes them; of a hardened one torch's get_model_state_dict "
                f"returns them, with StateDictOptions(full_state_dict=True, cpu_offload=True)"
            )
        if isinstance(module, GatedBranch):
            raise ValueError(f"shrink: {name or 'the model'} is a gated branch: call drop_branches and harden first")
        if isinstance(module, MaskedLayer):
            raise ValueError(
                f"shrink: {name or 'the model'} ({type(module).__name__}) is masked: call stochprune.harden first"
            )
    check_example(example_inputs)


def check_example(example_inputs: Any) -> None:
    """Refuse example inputs of :func:`shrink` without a tensor, or with one that is empty or sparse."""
    tensors = tensors_in(example_inputs)
    if not tensors or any(not tensor.numel() or tensor.layout != torch.strided for tensor in tensors):
        raise ValueError(
            f"shrink: example_inputs must be a dense tensor with one example or more, or a tuple or a dictionary of "
            f"these, got {example_inputs!r}"
        )


def _without_units(flow: Flow, example_inputs: Any) -> tuple[nn.Module, Plan]:
    """Return the model without all units that can go; the model itself if there are none."""
    while True:
        plan = Plan(flow)
        if not bool(plan.removed.any()):
            return flow.model, plan
        smaller = cut(plan)
        at = _first_difference(plan, smaller, example_inputs)
        if at is None:
            return smaller, plan
        _lock_around(plan, at)


def _lock_around(plan: Plan, at: int) -> None:
    """Keep the units that a call touches, which has sizes of its own, such as view(-1, 512); or those just before."""
    flow = plan.flow
    for call, *values in reversed([*zip(flow.calls, flow.values, flow.arguments, strict=True)][: at + 1]):
        going = [value.labels[plan.gone(value.labels)] for value in (*values[0], *values[1])]
        if any(labels.numel() for labels in going):
            flow.lock(torch.cat(going), f"goes through {call.where}, whose sizes are fixed")
            return
    flow.refuse("fails with smaller layers")


def _first_difference(plan: Plan, smaller: nn.Module, example_inputs: Any) -> int | None:
    """Return the index of the first call whose results have other shapes or elements than planned; None if none has."""
    recorder, inputs = Recorder(smaller), copied(example_inputs)
    try:
        with recorder.recording():
            call_model(smaller, inputs)
    except Exception:  # whatever a model raises on sizes that it does not expect
        return min(len(recorder.calls), len(plan.flow.calls)) - 1
    for at, values in enumerate(plan.flow.values):
        if at == len(recorder.calls) or recorder.calls[at].name != plan.flow.calls[at].name:
            return at
        shapes = [tuple(tensor.shape) for tensor in tensors_in(recorder.calls[at].out)]
        if shapes != [kept_shape(plan, value) for value in values] or not _as_planned(plan, at, recorder.calls[at]):
            return at
    return None


def _as_planned(plan: Plan, at: int, call: Call) -> bool:
    """Return True if a call of the smaller model, whose shapes are right, uses the numbers and elements planned for.

    After the cut ``x[:, 3]`` may be what ``x[:, 4]`` was, and ``x / x.shape[1]`` another quotient.
    """
    before = plan.flow.calls[at]
    if at not in plan.flow.moves:
        return takes_sizes(call) or _numbers((call.args, call.kwargs)) == _numbers((before.args, before.kwargs))
    sources = plan.flow.moves[at]
    ids = element_ids(sources)
    planned = [
        kept_part(plan, value, moved) for value, moved in zip(plan.flow.values[at], moved_by(before, ids), strict=True)
    ]
    parts = [kept_part(plan, value, each) for value, each in zip(sources, ids, strict=True)]
    return all(map(torch.equal, planned, moved_by(call, parts)))


def _numbers(arguments: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, int | float | complex)]


def _outputs(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """Return the tensors in a model's output. Recording keeps torch from its fused functions, which round otherwise."""
    inputs = copied(example_inputs)
    with Recorder(model).recording():
        return [tensor.clone() for tensor in tensors_in(call_model(model, inputs))]


def _try(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    try:
        return _outputs(model, example_inputs)
    except Exception:  # whatever a model raises on shapes that it does not expect
        return []


def _equal(reference: list[Tensor], found: list[Tensor]) -> bool:
    """Return True if two outputs have the same shapes, and elements equal to the tolerance."""
    if [t.shape for t in reference] != [t.shape for t in found]:
        return False
    coarsest = max((torch.finfo(t.dtype).eps for t in reference if t.is_floating_point()), default=0.0)
    return _difference(reference, found) <= max(TOLERANCE, 8 * coarsest)


def _difference(reference: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest difference of two outputs, relative to the largest element of each tensor."""
    worst = 0.0
    for left, right in zip(reference, found, strict=True):
        size = left.double().abs().nan_to_num(0, 0, 0).max() if left.numel() else torch.tensor(0.0)
        off = (left.double() - right.double()).abs()
        off[(left == right) | (left.isnan() & right.isnan())] = 0
        if off.numel():
            worst = max(worst, float(off.max() / size.clamp_min(torch.finfo(torch.float64).tiny)))
    return worst


def _set_modes(smaller: nn.Module, model: nn.Module) -> None:
    """Set the modes of the smaller model's modules to those of the model's; new ones have their parent's."""
    known = dict(model.named_modules())
    for name, module in smaller.named_modules():
        while name not in known:
            name = name.rpartition(".")[0]
        module.training = known[name].training


def _report(model: nn.Module, smaller: nn.Module, example_inputs: Any, removed: list[str], plan: Plan) -> ShrinkReport:
    before, after = ({name: tuple(p.shape) for name, p in m.named_parameters()} for m in (model, smaller))
    inside = tuple(f"{name}." for name in removed)
    names = [name for name in {**before, **after} if not name.startswith(inside)]
    changed = {n: (before.get(n, ()), after.get(n, ())) for n in names if before.get(n) != after.get(n)}
    return ShrinkReport(
        parameters=(_parameters(model), _parameters(smaller)),
        macs=(_macs(model, example_inputs), _macs(smaller, example_inputs)),
        milliseconds=_milliseconds(model, smaller, example_inputs),
        changed=changed,
        removed=tuple(removed),
        kept=tuple(_kept(plan)),
    )


def _milliseconds(model: nn.Module, smaller: nn.Module, example_inputs: Any) -> tuple[float, float]:
    """Return the time of a forward pass of both models: the fastest of a few, in which the models take turns.

    It has the time of a copy of the inputs, because a model may write into them, or add to a cache among them.
    """
    timers = []
    for each in (model, smaller):
        run = partial(_run, copy.deepcopy(each).eval(), example_inputs)
        timers.append(Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()))
    with torch.no_grad(), unchanged_random_state(model):
        times = [[1e3 * timer.timeit(1).mean for timer in timers] for _ in range(REPETITIONS)]
    before, after = map(min, zip(*times, strict=True))
    return before, after


def _run(model: nn.Module, example_inputs: Any) -> None:
    call_model(model, copied(example_inputs))


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _macs(model: nn.Module, example_inputs: Any) -> int:
    model = copy.deepcopy(model).eval()
    with Recorder(model).recording(), FlopCounterMode(display=False) as counter:
        call_model(model, copied(example_inputs))
    return counter.get_total_flops() // 2


def _kept(plan: Plan) -> list[Kept]:
    """Return the units that are constant or unneeded and stay, by layer and reason."""
    counts: dict[tuple[str, str], set[int]] = {}
    for module, labels, value in plan.flow.origins:
        in_use = value.labels[value.live].unique()
        for label in labels[~torch.isin(labels, in_use)].tolist():
            reason = plan.reasons.get(int(plan.group[label]), "goes together with units that are in use")
            counts.setdefault((module, reason), set()).add(label)
    return [Kept(module, len(units), reason) for (module, reason), units in counts.items()]
