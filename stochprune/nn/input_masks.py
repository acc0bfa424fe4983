"""Masks of units that depend on the example: probabilities computed from a layer's input by a small map."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import functional, rng
from stochprune.arguments import checked
from stochprune.functional._address import check_estimator
from stochprune.nn.convert import exchange
from stochprune.nn.mask_source import MaskSource
from stochprune.nn.selection import Selectors, check_choice, wanted
from stochprune.seeding import generator

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class InputDependentMask(MaskSource):
    """``z(x) * layer(x)``: each example has its own mask of units, with probabilities computed from the layer's input.

    A map with one hidden layer gives a logit for each unit: an output of a linear layer, or a channel of a convolution,
    whose map reads the mean of its input over all positions. The mask has row m for example m (token m of a linear
    layer) and column n for unit n. All estimators of :func:`stochprune.functional.mask` train the map.

    The masks are those of Liu et al. 2022, "GFlowOut: Dropout with generative flow networks" (arXiv 2210.12928), in
    which the mask of a layer depends on its input and the masks before it. There a GFlowNet learns to sample from the
    posterior of the masks. Here the expected loss is minimised, by the estimators of this package.

    Training and evaluation are those of masked layers: sampled, or thresholded at one half; ``sample`` overrides the
    mode. The draw counter is in the state_dict.

    Args:
        layer: the layer, of a type in :data:`LAYERS`; it stays a child, whose weights :func:`stochprune.convert` may
            mask in addition.
        hidden: units of the map's hidden layer. With 0 the logits are parameters that do not depend on the input, one
            for each unit, as a control.
        keep: the probability of keeping a unit at the start, for every input, in (0, 1).
        estimator, temperature: see :func:`stochprune.functional.masked_linear`.
        seed: 0 .. 2^64 - 1, of the masks and of the map's first weights.
        stream: 0 .. 2^31 - 1, the number of the layer.

    Attributes:
        expected: the mean probability of keeping in the last forward pass, a scalar to add to the loss with a price;
            None before. It is differentiable.

    Raises:
        TypeError: a layer of another type.
        ValueError: a value outside its range.
    """

    expected: Tensor | None = None

    @checked
    def __init__(
        self,
        layer: nn.Module,
        hidden: int = 16,
        *,
        keep: float = 0.9,
        estimator: str = "straight_through",
        temperature: float = 1.0,
        seed: int = 0,
        stream: int = 0,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        if not isinstance(layer, LAYERS):
            raise TypeError(f"{op}: layer must be nn.Linear or a convolution, got {type(layer).__name__}")
        if hidden < 0:
            raise ValueError(f"{op}: hidden must be at least 0, got {hidden}")
        if not 0 < keep < 1:
            raise ValueError(f"{op}: keep must lie strictly between 0 and 1, got {keep}")
        check_estimator(op, estimator, temperature)
        self.layer, weight = layer, layer.weight
        self._start_source(seed=seed, stream=stream, estimator=estimator, temperature=temperature, device=weight.device)
        inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        values = generator(seed, "input mask", stream).standard_normal((hidden, inputs)) / math.sqrt(max(1, inputs))
        self.spatial = weight.dim() - 2  # dimensions of an image; 0 for tokens. A masked layer may replace the layer
        units, start = len(weight), math.log(keep / (1 - keep))
        self.inner = nn.Parameter(torch.from_numpy(values).to(weight))
        self.outer = nn.Parameter(weight.new_zeros(units, hidden))
        self.offset = nn.Parameter(weight.new_full((units,), start))
        self.train(layer.training)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [M, units] of the layer's input: M tokens [..., in_features], or images [M, C, ...]."""
        rows = x.flatten(2).mean(2) if self.spatial else x.reshape(-1, x.shape[-1])
        return torch.relu(rows @ self.inner.mT) @ self.outer.mT + self.offset

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output with some units set to 0, other ones for each example."""
        if self.spatial and x.dim() < self.spatial + 2:
            raise ValueError(f"{type(self).__name__}: x must be a batch of images, got shape {tuple(x.shape)}")
        logits, y = self.logits(x), self.layer(x)
        self.expected = torch.sigmoid(logits).mean()
        z = functional.mask(logits, **self.address()) if self.samples_now else (logits >= 0).to(y.dtype)
        shape = (*z.shape, *[1] * self.spatial) if self.spatial else y.shape
        return y * z.view(shape).to(y.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "expected"}


@checked
def mask_units_by_input(
    model: nn.Module,
    include: Selectors,
    *,
    exclude: Selectors | None = None,
    hidden: int = 16,
    keep: float = 0.9,
    estimator: str = "straight_through",
    seed: int = 0,
    name: str = "",
) -> nn.Module:
    """Give layers of a model masks of units that depend on the example, in place.

    Args:
        model: see :class:`InputDependentMask` for the types of its layers. Choose hidden layers: the units of the last
            one are the model's outputs.
        include, exclude: shell patterns on weight names, or types, as for :func:`stochprune.convert`.
        hidden, keep, estimator: as for InputDependentMask.
        seed: 0 .. 2^64 - 1.
        name: the name of the model, as for convert.

    Returns:
        The model. If it is itself a layer, the new module is returned.

    Raises:
        TypeError: an argument of another type.
        ValueError: a pattern that fits no layer, no layer left, a value outside its range.
    """
    found = {f"{path}.weight" if path else "weight": m for path, m in model.named_modules() if type(m) in LAYERS}
    check_choice("mask_units_by_input", include, exclude, [*found], [key for key, _ in model.named_parameters()])
    prefix = f"{name}." if name else ""
    streams = rng.streams(prefix + weight for weight in found)
    options: dict[str, Any] = {"keep": keep, "estimator": estimator, "seed": seed}
    chosen: dict[nn.Module, nn.Module] = {
        layer: InputDependentMask(layer, hidden, stream=streams[prefix + weight], **options)
        for weight, layer in found.items()
        if wanted(model, [weight], include, exclude)
    }
    if not chosen:
        raise ValueError(f"mask_units_by_input: include and exclude choose none of {', '.join(found)}")
    return exchange(model, chosen, [*model.modules()])  # not inside the new modules, which hold the layers
