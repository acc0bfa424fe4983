"""batched_samples: many sampled networks of a model in one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from stochprune.nn.layer import MaskedLayer
from stochprune.nn.masked_module import MaskedParameter
from stochprune.nn.members import layers_of


@contextlib.contextmanager
def batched_samples(model: nn.Module, draws: int) -> Iterator[nn.Module]:
    """Run ``draws`` networks in each forward pass inside the context, each on its own part of the batch::

        with sp.nn.batched_samples(model, 64):
            y = model(x)  # x [64 * M, ...]: rows s * M .. s * M + M - 1 under the s-th network

    Masked layers that sample use one mask per part, at successive draws, in one launch per layer. Their counters
    advance by ``draws``. If each layer runs once, part s gives the same output, up to rounding, as the s-th of
    ``draws`` separate forward passes on M examples each. To run the same examples under all networks, repeat them.
    Gradients are sums over the networks.

    The first dimension of every layer's input must be the batch, or a multiple of it with the batch outermost. Another
    first dimension, such as time, is not noticed if its size is a multiple too. Other modules must process each example
    independently, which batch normalisation does only in evaluation mode. With activation checkpointing, run backward
    inside the context. ``torch.compile`` is not supported.

    Args:
        model: a converted model.
        draws: the number of networks, at least 1; with 1 nothing changes.

    Raises:
        TypeError: the model is not a module, or ``draws`` is not an integer.
        ValueError: the model has no masked layer; ``draws`` is below 1; the context is inside ``fused_masking`` or
            another ``batched_samples``; a layer is under local reparameterisation, or is a
            masked attention, recurrent or other :class:`stochprune.nn.MaskedModule`. In a forward pass: no argument has
            a batch, ``draws`` does not divide the batch, or a layer's input has another first dimension.
    """
    layers = layers_of("batched_samples", model)
    if isinstance(draws, bool) or not isinstance(draws, int):
        raise TypeError(f"batched_samples: draws must be an integer of at least 1, got {draws!r}")
    if draws < 1:
        raise ValueError(f"batched_samples: draws must be at least 1, got {draws}")
    if any(layer.weight_override is not None or layer.draws_per_forward > 1 for layer in layers.values()):
        raise ValueError("batched_samples: not inside fused_masking or another batched_samples")
    for name, layer in layers.items():
        if layer.local_reparameterisation:
            raise ValueError(f"batched_samples: {name} is under local reparameterisation, which samples no masks")
    if draws == 1:
        yield model
        return
    for name, layer in layers.items():
        if isinstance(layer, MaskedParameter):
            raise ValueError(
                f"batched_samples: {name} belongs to an attention, recurrent or other module that runs under one mask "
                f"at a time: make {draws} separate forward passes"
            )
    names = {layer: name for name, layer in layers.items()}
    batch = 0

    def measure(entered: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal batch
        if entered is not model:
            return
        lengths = [len(given) for given in (*args, *kwargs.values()) if isinstance(given, Tensor) and given.dim()]
        if not lengths:
            raise ValueError("batched_samples: the model is given no tensor whose first dimension could be the batch")
        batch = lengths[0]
        if batch % draws:
            raise ValueError(f"batched_samples: a batch of {batch} does not divide into {draws} parts")

    def samples(layer: MaskedLayer) -> bool:
        """Return True if this forward pass samples masks. A copy of a layer has the hooks, but is not in ``names``."""
        return layer in names and layer.samples_now and layer.weight_override is None

    def split(layer: MaskedLayer, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not samples(layer):
            return args
        if not batch:
            raise ValueError(f"batched_samples: {names[layer]} runs outside of a forward of the model that was given")
        if not args:
            raise ValueError(f"batched_samples: {names[layer]} has no input by position")
        x, *rest = args
        if not x.dim() or len(x) % batch:
            raise ValueError(
                f"batched_samples: {names[layer]} has an input {tuple(x.shape)}, whose first dimension is not the "
                f"batch, {batch}"
            )
        return x.unflatten(0, (draws, -1)), *rest

    def merge(layer: MaskedLayer, _: tuple[Any, ...], y: Tensor) -> Tensor:
        return y.flatten(0, 1) if samples(layer) else y

    with contextlib.ExitStack() as stack:
        stack.enter_context(model.register_forward_pre_hook(measure, prepend=True, with_kwargs=True))
        for layer in layers.values():
            layer.draws_per_forward = draws
            stack.callback(setattr, layer, "draws_per_forward", 1)
            stack.enter_context(layer.register_forward_pre_hook(split))
            stack.enter_context(layer.register_forward_hook(merge, prepend=True))
        yield model
