"""``shrink`` for models that FSDP2 splits: one block after the other, so that no process holds the model."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_leaves

from stochprune.arguments import checked
from stochprune.distributed.fsdp_copy import groups, mesh_of, param_dtype, plain_copy, split_like
from stochprune.nn.evaluation import evaluation
from stochprune.nn.fast_path import settle_fast_paths
from stochprune.nn.gated_branch import GatedBranch
from stochprune.nn.layer import MaskedLayer
from stochprune.shards import gathered, is_dtensor, is_split
from stochprune.shrinking import ShrinkReport
from stochprune.shrinking import shrink as shrink_whole
from stochprune.shrinking.recorder import call_model, copied, mapped, tensors_in, unchanged_random_state
from stochprune.shrinking.report import joined
from stochprune.shrinking.shrink import check_example

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]

WAY_OUT = (
    "load what torch's get_model_state_dict returns, with StateDictOptions(full_state_dict=True, cpu_offload=True), "
    "into a plain model on a CPU, and call stochprune.shrink"
)


class _Calls(nn.Module):
    """A block that runs on the arguments of all its calls, so that what goes from it is needed in none."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, calls: Calls) -> list[Any]:
        return [self.block(*args, **kwargs) for args, kwargs in calls]


@checked
def shrink(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Return a smaller copy of a pruned model that ``fully_shard`` splits; no process ever holds the whole model.

    :func:`stochprune.shrink` changes the blocks, one after the other: the modules inside the model that were given to
    ``fully_shard``, such as the layers of a transformer. Each is gathered, shrunk on the inputs that it has when the
    model runs on the example, and split again with the same options. A unit goes if nothing *in its block* needs it:
    what joins the blocks, such as the residual stream, keeps its size. The rest of the model, such as embeddings and
    the output layer, stays as it is; each process copies its parts::

        state = sp.distributed.hardened_state(model)  # of a masked model
        set_model_state_dict(dense, state)  # a plain model that is split; of torch.distributed.checkpoint.state_dict
        smaller = sp.distributed.shrink(dense, {"input_ids": ids})

    Besides both models' parts, a process holds a few copies of one block, and the inputs of all blocks. All processes
    of the mesh must call it. Give the smaller model an optimiser of its own, and repeat settings such as
    ``set_modules_to_forward_prefetch``.

    Args:
        model: a plain model, split by ``fully_shard`` of FSDP2, also on a mesh of two dimensions; it is left untouched.
        example_inputs: as for :func:`stochprune.shrink`, equal in all processes, because all must remove the same.

    Returns:
        The smaller model, split as the one given. Its ``shrink_report`` is that of all blocks: parameters,
        multiplications and times are their sums, without the rest of the model.

    Warns:
        UserWarning: blocks that stay as they are, because they get no tensor when the model runs on the example.

    Raises:
        TypeError: a model that is not a module.
        ValueError: masked layers or gated branches; a model that is not split, that is split as one block, or over
            several meshes, as by tensor parallelism; examples, or buffers of a block, that differ between processes;
            inputs on which the model fails; or as for :func:`stochprune.shrink`.
        RuntimeError: as for :func:`stochprune.shrink`; processes that would remove different units; another process
            that has failed, after the timeout of the process group.
    """
    _check(model)
    check_example(example_inputs)
    blocks = _blocks(model)
    mesh = _mesh(model)
    if not blocks:
        raise ValueError(
            f"shrink: {type(model).__name__} is split as one block, so a process would hold the whole model: call "
            f"fully_shard on its layers too; or {WAY_OUT}"
        )
    with _waiting_for_others():
        _check_equal(mesh, blocks, example_inputs)
        calls = _calls(model, blocks, example_inputs)
        _reshard(model)
        given: dict[nn.Module, nn.Module] = {}
        reports: dict[str, ShrinkReport] = {}
        for name, block in blocks.items():
            if tensors_in(inputs := calls.pop(block)):
                given[block], reports[name] = _smaller(name, block, inputs, mesh)
    if idle := blocks.keys() - reports.keys():
        stay = f"{', '.join(sorted(idle))} got no tensor from the example, and stay as they are"
        warnings.warn(f"shrink: {stay}", stacklevel=3)
    smaller = plain_copy(model, lambda part: torch.empty(part.shape, dtype=part.dtype, device="meta"), given)
    split_like(smaller, model, mesh)
    _fill(smaller, model)
    settle_fast_paths(smaller)
    smaller.shrink_report = joined(reports, "block")  # type: ignore[assignment]
    return smaller


def _check(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer | GatedBranch):
            raise ValueError(
                f"shrink: {name or 'the model'} ({type(module).__name__}) is masked: load the weights that "
                f"stochprune.distributed.hardened_state returns into a plain model that is split, with torch's "
                f"set_model_state_dict, and shrink that"
            )
    if not any(map(is_split, model.modules())):
        raise ValueError(f"shrink: {type(model).__name__} is not split over processes: call stochprune.shrink")


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost modules inside the model that FSDP2 splits, but not those that it splits as one group.

    A module with several names has the first one. Blocks that share a block inside them are left to their parts, else
    each would get a copy of it.
    """
    alone = {group[0] for group in groups(model) if len(group) == 1}
    found: dict[nn.Module, str] = {}

    def look(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            if child in alone:
                found.setdefault(child, prefix + name)
            else:
                look(child, f"{prefix}{name}.")

    def shares(block: nn.Module) -> bool:
        inner = alone.intersection(block.modules()) - {block}
        return any(inner.intersection(other.modules()) for other in found if other is not block)

    look(model, "")
    while outer := next(filter(shares, found), None):
        look(outer, f"{found.pop(outer)}.")
    return {name: block for block, name in found.items()}


def _mesh(model: nn.Module) -> DeviceMesh:
    """Return the mesh over which FSDP2 splits the model; all parts of the model must be on it."""
    _reshard(model)
    meshes = [mesh for group in groups(model) if (mesh := mesh_of(group[0])) is not None]
    for name, parameter in model.named_parameters():
        if is_dtensor(parameter) and (not meshes or parameter.device_mesh != meshes[0]):
            raise ValueError(
                f"shrink: {name} is split over a mesh {tuple(parameter.device_mesh.shape)} that is not the one of all "
                f"FSDP2 blocks, as by tensor parallelism, so its parts cannot be shrunk and split again: {WAY_OUT}"
            )
    if not meshes:
        raise ValueError(f"shrink: {type(model).__name__} is split, but not by fully_shard of FSDP2: {WAY_OUT}")
    return meshes[0]


def _reshard(model: nn.Module) -> None:
    """Free the whole parameters that a forward pass has left."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def _waiting_for_others() -> Iterator[None]:
    """Say of an error of the communication that another process may be its cause."""
    try:
        yield
    except Exception as error:
        found = any(isinstance(each, dist.DistError) for each in (error, error.__cause__))
        if found or "gloo/" in str(error):  # gloo's errors are plain RuntimeErrors that name its source file
            raise RuntimeError(
                f"shrink: this process waited in vain for another one, which has probably failed: look at the errors "
                f"of all processes ({type(error).__name__}: {error})"
            ) from error
        raise


def _check_equal(mesh: DeviceMesh, blocks: dict[str, nn.Module], example_inputs: Any) -> None:
    """Refuse inputs, and tensors of blocks that are not split, that are not the same in all processes."""
    numbers = [leaf for leaf in tree_leaves(example_inputs) if not isinstance(leaf, Tensor)]
    if not _same(mesh, [*map(_digest, tensors_in(example_inputs)), repr(numbers)]):
        raise ValueError(
            "shrink: example_inputs differ between processes, which must all remove the same units: give all of them "
            "one example, such as that of the first process, sent by torch.distributed.broadcast"
        )
    whole: dict[str, Any] = {}
    for prefix, block in blocks.items():
        tensors = [*block.named_parameters(prefix), *block.named_buffers(prefix)]
        whole |= {name: _digest(tensor) for name, tensor in tensors if not is_dtensor(tensor)}
    if not _same(mesh, whole):
        name = next(name for name, digest in whole.items() if not _same(mesh, digest))
        raise ValueError(
            f"shrink: {name} differs between processes, which must all remove the same units: make it equal with "
            f"torch.distributed.broadcast"
        )


def _same(mesh: DeviceMesh, value: Any) -> bool:
    """Return True, in all processes of the mesh, if the value is the same in all of them."""
    for group in mesh.get_all_groups():
        found: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, value, group=group)
        value = value if all(each == value for each in found) else None
    return value is not None


def _digest(tensor: Tensor) -> tuple[Any, ...]:
    bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tuple(tensor.shape), str(tensor.dtype), hashlib.sha256(bits).hexdigest()


def _calls(model: nn.Module, blocks: dict[str, nn.Module], example_inputs: Any) -> dict[nn.Module, Calls]:
    """Return the arguments that the blocks are called with when the model runs on the example in evaluation mode."""
    found: dict[nn.Module, Calls] = {block: [] for block in blocks.values()}

    def keep(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[block].append(copied((args, kwargs)))

    handles = [block.register_forward_pre_hook(keep, prepend=True, with_kwargs=True) for block in found]
    try:
        with evaluation(model), torch.no_grad(), unchanged_random_state(model), _unchanged_buffers(model):
            call_model(model, copied(example_inputs))
    except Exception as error:
        name = type(model).__name__
        raise ValueError(f"shrink: {name} fails on the example inputs: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextlib.contextmanager
def _unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers at the end of the context, for a model that counts its calls or keeps what it has seen."""
    values = {buffer: buffer.clone() for buffer in model.buffers()}
    owners = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for buffer, value in values.items():
            buffer.copy_(value)
        for module, buffers in owners:
            module._buffers.update(buffers)


def _smaller(name: str, block: nn.Module, calls: Calls, mesh: DeviceMesh) -> tuple[nn.Module, ShrinkReport]:
    """Return a smaller copy of a block, split as it is."""
    narrow, first = param_dtype(block), next((p for p in block.parameters() if p.is_floating_point()), None)
    if narrow is not None and first is not None:  # the plain copy has the parameters' own dtype
        dtype = first.dtype
        calls = mapped(calls, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    try:
        smaller = shrink_whole(_Calls(plain_copy(block, gathered)), (calls,))
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"{error} (in the block {name})") from error
    report, plain = smaller.shrink_report, smaller.block
    assert isinstance(report, ShrinkReport) and isinstance(plain, nn.Module)
    if not _same(mesh, [(key, tuple(tensor.shape)) for key, tensor in plain.state_dict().items()]):
        raise RuntimeError(
            f"shrink: the processes would remove different units of {name}: are their devices and libraries the same?"
        )
    if narrow is not None:
        known = {key for key, _ in block.named_buffers()}
        for key, buffer in plain.named_buffers():
            if key not in known:  # a constant in place of a module, whose output had this dtype
                buffer.data = buffer.to(narrow) if buffer.is_floating_point() else buffer
    split_like(plain, block, mesh)
    return plain, report


def _fill(smaller: nn.Module, model: nn.Module) -> None:
    """Copy the model's parts to the parameters of the smaller model that have no values yet."""
    parts = dict(model.named_parameters(remove_duplicate=False))
    values: dict[nn.Parameter, nn.Parameter] = {}
    for name, empty in [*smaller.named_parameters(remove_duplicate=False)]:
        if empty.device.type == "meta":
            part, (owner, _, attribute) = parts[name], name.rpartition(".")
            new = values.setdefault(part, nn.Parameter(part.detach().clone(), requires_grad=part.requires_grad))
            setattr(smaller.get_submodule(owner), attribute, new)
