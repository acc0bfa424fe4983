"""many_draws: many networks of a model in one forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from stochprune.nn.layer import masked_layers


@contextlib.contextmanager
def many_draws(model: nn.Module, draws: int) -> Iterator[nn.Module]:
    """Inside the context a forward runs ``draws`` networks, each on its own part of the batch::

        with sp.nn.many_draws(model, 64):
            y = model(x)  # x [64 * M, ...]: rows s * M .. s * M + M - 1 under the s-th network

    Masked layers that draw take one mask for each part, of as many successive draws, in one launch a layer; their
    counters advance by ``draws``. So the s-th part has the networks and, rounding aside, the outputs of the s-th of
    as many forwards on M examples each. For the same examples under all networks repeat them. Gradients are the sums
    over the networks.

    Every layer must keep the batch's dimension, or a multiple of it with the batch outermost, first. Other modules must
    treat the examples of a batch alike and apart, which batch normalisation does in evaluation mode alone. Not for
    ``torch.compile``.

    Args:
        model: converted.
        draws: at least 1; with 1 nothing changes.

    Raises:
        ValueError: ``draws`` below 1; inside ``one_launch`` or another ``many_draws``. In a forward: a batch that
            ``draws`` does not divide, a layer whose input has another first dimension.
    """
    layers = {name: layer for name, layer in masked_layers(model).items() if layer.samples_now}
    if draws < 1:
        raise ValueError(f"many_draws: draws must be at least 1, got {draws}")
    if any(layer.given_weight is not None or layer.draws_a_forward > 1 for layer in layers.values()):
        raise ValueError("many_draws: not inside one_launch or another many_draws")
    if draws == 1:
        yield model
        return
    batch = 0

    def measure(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal batch
        batch = len(next(given for given in (*args, *kwargs.values()) if isinstance(given, Tensor)))
        if batch % draws:
            raise ValueError(f"many_draws: a batch of {batch} does not divide into {draws} parts")

    def take_apart(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        if not batch or len(x) % batch:
            name = next(name for name, known in layers.items() if known is layer)
            raise ValueError(
                f"many_draws: {name} has an input {tuple(x.shape)}, whose first dimension is not the batch, {batch}"
            )
        return x.unflatten(0, (draws, -1)), *rest

    def put_together(_: nn.Module, __: tuple[Any, ...], y: Tensor) -> Tensor:
        return y.flatten(0, 1)

    with contextlib.ExitStack() as stack:
        stack.enter_context(model.register_forward_pre_hook(measure, prepend=True, with_kwargs=True))
        for layer in layers.values():
            layer.draws_a_forward = draws
            stack.callback(setattr, layer, "draws_a_forward", 1)
            stack.enter_context(layer.register_forward_pre_hook(take_apart))
            stack.enter_context(layer.register_forward_hook(put_together, prepend=True))
        yield model
