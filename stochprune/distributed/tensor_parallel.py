"""Tensor parallelism: the styles of ``parallelize_module`` for masked layers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.distributed.tensor.placement_types import Placement
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from stochprune import patterns
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_embedding import MaskedEmbedding
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.nm import NMMaskedLinear
from stochprune.shards import from_part

KINDS = (MaskedLinear, NMMaskedLinear, MaskedEmbedding)

_made = WeakTensorKeyDictionary()  # what a parameter became, while another layer still has it


class MaskedColwiseParallel(ColwiseParallel):
    """Splits the outputs of a masked linear layer, or the columns of a masked embedding, over the processes of a mesh.

    The style for ``torch.distributed.tensor.parallel.parallelize_module``; weight, logits and bias become DTensors.
    Each process samples its part of the mask of the whole weight, so the mask is that of one process::

        plan = {"up": MaskedColwiseParallel(), "down": MaskedRowwiseParallel()}
        parallelize_module(model, mesh, plan)

    Args:
        input_layouts, output_layouts, use_local_output: as for ``ColwiseParallel``. With sequence parallelism
            ``input_layouts=Shard(1)``.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layer = _checked(self, module)
        column = Shard(1) if isinstance(layer, MaskedEmbedding) else Shard(0)
        _split(layer, device_mesh, column, Shard(0), self.src_data_rank)
        prepare = partial(_input, self.input_layouts, None)
        return _hooked(layer, device_mesh, prepare, partial(self._prepare_output_fn, *_outputs(self)))


class MaskedRowwiseParallel(RowwiseParallel):
    """Splits the inputs of a masked linear layer, or the rows of a masked embedding, over the processes of a mesh.

    See :class:`MaskedColwiseParallel`. The processes' results are summed; the values differ from those of one process
    by the order of that sum.

    Args:
        input_layouts, output_layouts, use_local_output: as for ``RowwiseParallel``. With sequence parallelism
            ``output_layouts=Shard(1)``. An embedding needs ``input_layouts=Replicate()``.

    Raises:
        ValueError: in ``parallelize_module``, an n:m layer whose groups would be cut, an embedding with the default
            ``input_layouts``, or layers with one weight that are split in different ways; in the first forward pass, a
            layer with the same weight that the plan does not name.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layer = _checked(self, module)
        embedding = isinstance(layer, MaskedEmbedding)
        if embedding and self.input_layouts == (Shard(-1),):
            raise ValueError(
                "MaskedRowwiseParallel: input_layouts of an embedding, whose indices have no features, must not be "
                "Shard(-1), the default: use input_layouts=Replicate()"
            )
        if isinstance(layer, NMMaskedLinear):
            _check_groups(layer, device_mesh)
        _split(layer, device_mesh, Shard(0) if embedding else Shard(1), Replicate(), self.src_data_rank)
        prepare = partial(_input, self.input_layouts, None if embedding else layer.weight.shape[1])
        return _hooked(layer, device_mesh, prepare, partial(self._prepare_output_fn, *_outputs(self)))


def _outputs(style: ColwiseParallel | RowwiseParallel) -> tuple[Any, bool]:
    return style.output_layouts, style.use_local_output


def _checked(style: ColwiseParallel | RowwiseParallel, module: nn.Module) -> MaskedLayer:
    name = type(style).__name__
    if type(module) not in KINDS:
        known = ", ".join(kind.__name__ for kind in KINDS)
        advice = "use it on masked layers" if not isinstance(module, MaskedLayer) else "its mask cannot be split"
        raise TypeError(f"{name}: the module must be one of {known}, got {type(module).__name__}: {advice}")
    assert isinstance(module, MaskedLayer)
    if isinstance(module.weight, DTensor):
        raise ValueError(f"{name}: the weight is a DTensor already, {module.weight.placements}: split a module once")
    return module


def _check_groups(layer: NMMaskedLinear, mesh: DeviceMesh) -> None:
    """Raise if a process's columns, which are a multiple of the same number for each, would cut a group."""
    _, m = patterns.parse(layer.pattern)
    columns, processes = layer.weight.shape[1], mesh.size()
    width = -(-columns // processes)
    if processes > 1 and width % m:
        raise ValueError(
            f"MaskedRowwiseParallel: pattern {layer.pattern} needs groups of {m} whole columns, but {columns} columns "
            f"over {processes} processes are {width} each, which cuts a group: use MaskedColwiseParallel here, or "
            f"another number of processes"
        )


def _split(layer: MaskedLayer, mesh: DeviceMesh, weight: Placement, bias: Placement, source: int | None) -> None:
    """Make DTensors of the parameters; seed and counter remain the same plain buffers in every process.

    A parameter that layers share is split once, so it remains one parameter if the plan names all of them. Whether it
    does is known in the first forward pass.
    """
    before = [TensorWeakRef(parameter) for parameter in layer.parameters(recurse=False)]

    def check(*_: Any) -> None:
        _refuse_half_a_tie(layer, before)
        hook.remove()

    hook = layer.register_forward_pre_hook(check)
    for name, parameter in [*layer.named_parameters(recurse=False)]:
        where = bias if name == "bias" else weight
        made = _made.get(parameter)
        if made is None:
            split = distribute_tensor(parameter, mesh, [where], src_data_rank=source)
            made = _made[parameter] = nn.Parameter(split, requires_grad=parameter.requires_grad)
        elif made.placements != (where,) or made.device_mesh != mesh:
            raise ValueError(
                f"parallelize_module: the {name} of this {type(layer).__name__} is tied to that of a layer which is "
                f"split by {made.placements}, got {where}: split both along the same dimension"
            )
        layer.register_parameter(name, made)


def _refuse_half_a_tie(layer: nn.Module, before: list[TensorWeakRef]) -> None:
    """Raise if another module of the model still has a parameter from before the split: it is no longer tied.

    A layer does not know its model, so this looks it up among all objects, if anything has the parameter.
    """
    for parameter in filter(lambda each: each is not None, [each() for each in before]):
        modules = [each for each in gc.get_objects() if issubclass(type(each), nn.Module)]
        models = ({part: name for name, part in module.named_modules()} for module in modules)
        names = max((model for model in models if layer in model), key=len)
        for module, name in names.items():
            if any(each is parameter for each in module.parameters(recurse=False)):
                raise ValueError(
                    f"parallelize_module: {name} is tied to {names[layer]}, but the plan names only the latter: name "
                    f"both, such as an embedding with MaskedRowwiseParallel(input_layouts=Replicate()) and an output "
                    f"layer with MaskedColwiseParallel(), or untie them"
                )


def _hooked(layer: MaskedLayer, mesh: DeviceMesh, before: Any, after: Any) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, inputs: before(inputs, mesh))
    layer.register_forward_hook(lambda module, inputs, output: after(module, output, mesh))
    return layer


def _input(layouts: Sequence[Placement], features: int | None, inputs: tuple[Any, ...], mesh: DeviceMesh) -> Any:
    """Return the inputs, the first of them as a DTensor; ``features`` is its whole last dimension where it is split.

    The layer itself brings it to the layout that its weight needs.
    """
    x, *others = inputs
    if isinstance(x, DTensor):
        return inputs
    assert isinstance(x, Tensor)
    shape = list(x.shape)
    for layout in layouts:
        if isinstance(layout, Shard):
            shape[layout.dim] *= mesh.size()
            if features is not None and layout.dim in (-1, x.dim() - 1):
                shape[-1] = features  # whose parts may differ in size
    placements = [Shard(p.dim % x.dim()) if isinstance(p, Shard) else p for p in layouts]
    return from_part(x, mesh, placements, shape), *others
