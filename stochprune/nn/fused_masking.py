"""fused_masking: sample the masks of a whole model in one launch, for models of many small layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.functional import masked_weights
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.mask_source import MaskSource, override_weights
from stochprune.nn.masked_conv import CONVOLUTIONS
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.masked_module import MaskedParameter
from stochprune.nn.members import layers_of
from stochprune.shards import is_split

_KINDS = {MaskedLinear, *CONVOLUTIONS, MaskedParameter}  # without subclasses, whose masks may be of another kind


class _Shared:
    """Layers that one launch masks; backward computes their masked weights again instead of saving them."""

    def __init__(self, layers: list[MaskedLayer]) -> None:
        self.layers = layers
        self.draws: dict[MaskSource, Tensor] = {layer: layer.next_draw() for layer in layers}
        self.options: dict[str, Any] = {
            "seeds": torch.cat([layer.mask_seed for layer in layers]),
            "draws": torch.cat([*self.draws.values()]),
            "streams": [layer.stream for layer in layers],
            "estimator": layers[0].estimator,
            "temperature": layers[0].temperature,
        }
        device = layers[0].weight.device.type
        if torch.is_autocast_enabled(device) and layers[0].weight.dtype != torch.float64:
            self.options["dtype"] = torch.get_autocast_dtype(device)
        self.versions = self.versions_now()
        self.index: dict[int, int] = {}  # the number of the layer by the address of its masked weight
        self.again: list[Tensor] = []
        self.saved = self.left = 0  # how often autograd saved a masked weight, and how often it will still ask for one

    def start(self) -> dict[MaskSource, Tensor]:
        """Return the masked weight of each layer, and remember its address in memory."""
        given = self.form()
        self.index = {weight.data_ptr(): i for i, weight in enumerate(given)}
        return dict(zip(self.layers, given, strict=True))

    def versions_now(self) -> list[int]:
        """Return how often each weight and its logits were changed in place."""
        tensors = [tensor for layer in self.layers for tensor in (layer.weight, layer.mask_logits)]
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]

    def form(self) -> list[Tensor]:
        """Return the masked weights of the layers."""
        return masked_weights(
            [layer.weight for layer in self.layers], [layer.mask_logits for layer in self.layers], **self.options
        )

    def take(self, i: int) -> Tensor:
        """Return the i-th masked weight for backward. The first call computes all of them; the last call drops them."""
        if not self.again:
            if self.versions_now() != self.versions:
                raise RuntimeError(
                    "fused_masking: a weight or its mask_logits were changed in place after the forward, and backward "
                    "needs them as they were; step the optimiser after backward"
                )
            with torch.no_grad():
                self.again, self.left = self.form(), self.saved
        weight = self.again[i]
        self.left -= 1
        if self.left == 0:
            self.again = []
        return weight


@contextlib.contextmanager
def fused_masking(model: nn.Module) -> Iterator[nn.Module]:
    """Run the layers of a model under masks that are sampled in one launch::

        with sp.nn.fused_masking(model):
            loss = loss_fn(model(x), y)
        loss.backward()

    On a GPU one launch computes all masked weights when the context is entered, one launch computes them again in
    backward, and one computes all gradients of weights and logits; otherwise each layer makes its own launches. If each
    layer runs once, masks, values and gradients equal those of the layers by themselves. A layer that runs several
    times inside the context uses one mask for all its runs. The masked weights of the whole model exist inside the
    context and during backward; they are not saved in between. On the CPU networks of many small layers also become
    faster, because all masks are computed at once.

    Layers that threshold, layers that sample pre-activations, layers inside ``batched_samples``, embeddings, layers
    that are split over processes and layers of other kinds run as usual. ``torch.compile`` and activation checkpointing
    are not supported.

    Raises:
        TypeError: not a module.
        ValueError: no masked layer; inside another ``fused_masking`` of the same layers.
    """
    groups: dict[tuple[Any, ...], list[MaskedLayer]] = {}
    for layer in layers_of("fused_masking", model).values():
        if layer.weight_override is not None:
            raise ValueError(
                "fused_masking: another fused_masking or antithetic_gradients already sets the masks of these "
                "layers; enter it once"
            )
        samples_masks = layer.samples_now and not layer.local_reparameterisation
        if type(layer) in _KINDS and samples_masks and not is_split(layer) and layer.draws_per_forward == 1:
            dtypes = (layer.weight.dtype, layer.mask_logits.dtype)
            key = (layer.weight.device, *dtypes, layer.estimator, layer.temperature, layer.weight.requires_grad)
            groups.setdefault(key, []).append(layer)
    shared = [_Shared(layers) for layers in groups.values()]
    given = {layer: weight for group in shared for layer, weight in group.start().items()}
    owners = {address: (group, i) for group in shared for address, i in group.index.items()}

    def pack(tensor: Tensor) -> Any:
        group, i = owners.get(tensor.data_ptr(), (None, 0))
        given = None if group is None else group.layers[i].weight_override
        if group is None or given is None or tensor.numel() != given.numel() or tensor.dtype != given.dtype:
            return tensor
        group.saved += 1
        return group, i, tensor.shape, tensor.stride()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        group, i, shape, stride = packed
        weight = group.take(i)
        return weight.as_strided(shape, stride, weight.storage_offset())

    pack.of_fused_masking = True  # type: ignore[attr-defined]  # layers recognise checkpointing by its hooks
    draws = {layer: draw for group in shared for layer, draw in group.draws.items()}
    with override_weights(given, draws), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield model
