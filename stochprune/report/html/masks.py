"""Figures of masks: histograms of keep probabilities by layer, and pictures of the first layer's masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stochprune import rng
from stochprune.functional.keep_mask import keep_mask
from stochprune.masks.snapshot import BINS, MOST_INPUTS, MOST_UNITS, snapshot
from stochprune.report.html import charts
from stochprune.report.html.parts import MOST_SERIES, Figure, Panel, Picture, Table, is_number, short
from stochprune.report.html.png import data_uri

MOST_LAYERS = 60
LOGITS = ".mask_logits"
Snapshots = Mapping[str, Mapping[str, Any]]
"""Results of :func:`stochprune.masks.snapshot`, by the name of the mask."""


def snapshot_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the snapshot of the state of a masked model, with the masks of the contract's draw 0 at its seeds."""
    logits = {name.removesuffix(LOGITS): value for name, value in tensors.items() if name.endswith(LOGITS)}
    logits = {name: value for name, value in logits.items() if value.is_floating_point() and value.numel()}
    first = next(iter(logits), None)
    seed = None if first is None else tensors.get(f"{first}.mask_seed")
    if first is None or seed is None or seed.numel() != 1:
        return snapshot(logits, {})
    thresholds = rng.threshold_from_logits(logits[first].flatten(1))
    mask = keep_mask(thresholds, seed=int(seed) % rng.SEED_LIMIT, draw=0, stream=rng.stream(f"{first}.weight"))
    return snapshot(logits, {first: mask.view(logits[first].shape)})


def mask_figures(snapshots: Snapshots) -> list[Figure]:
    """Return the figures of some masks, at most :data:`MOST_SERIES`; those without content are left out."""
    shown = dict(list(snapshots.items())[:MOST_SERIES])
    return [figure for figure in (_histograms(shown), _pictures(shown)) if figure.panels or figure.pictures]


def _histograms(snapshots: Snapshots) -> Figure:
    by_layer: dict[str, list[dict[str, Any]]] = {}
    rows: list[list[Any]] = []
    for series, found in snapshots.items():
        for layer, counts in list(_mapping(found.get("keep")).items())[:MOST_LAYERS]:
            if not (isinstance(counts, list) and len(counts) == BINS and all(map(is_number, counts)) and sum(counts)):
                continue
            share = [100 * count / sum(counts) for count in counts]
            records = by_layer.setdefault(short(layer), [])
            records += [{"series": series, "x": (i + 0.5) / BINS, "y": part} for i, part in enumerate(share)]
            rows.append([series, short(layer), sum(counts), share[0], sum(share[1:-1]), share[-1]])
    x = charts.quantity("x", "keep probability")
    y = charts.quantity("y", "weights (%, root scale)", zero=True)
    y["scale"] = {"type": "sqrt"}  # most weights lie at the ends
    columns = ("mask", "layer", "weights", "% below 0.05", "% between", "% above 0.95")
    return Figure(
        "Keep probabilities by layer",
        f"The share of a layer's weights in each of {BINS} intervals of the keep probability. Weights at the ends are "
        "decided; those between still change with the draw.",
        [Panel(charts.lines(records, x, y, height=180), layer) for layer, records in by_layer.items()],
        table=Table("Keep probabilities by layer", columns, rows),
    )


def _pictures(snapshots: Snapshots) -> Figure:
    pictures: list[Picture] = []
    for name, found in snapshots.items():
        pictures += _first_layer(name, _mapping(found.get("first")))
    return Figure(
        "Masks of the first layer",
        "Dark: kept. For each mask two pictures: the share of units that keep each input, from the least to the most, "
        "and the masks of the first units, one tile each. Of random masks, draw 0 is shown.",
        pictures=pictures,
    )


def _first_layer(name: str, first: Mapping[str, Any]) -> list[Picture]:
    """Return the pictures of one mask; none if it is not what a snapshot holds."""
    shape, share, units = first.get("shape"), first.get("share"), first.get("units")
    if not (isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape) and len(shape) > 1):
        return []
    inputs = math.prod(shape[1:])
    if not (isinstance(share, list) and len(share) == inputs <= MOST_INPUTS and all(map(is_number, share))):
        return []
    layout = _layout(tuple(shape[1:]))
    average = np.array(share, dtype=np.float64)
    total = float(average.mean())
    layer = short(first.get("name", "the first layer"))
    scale = max(2, 168 // max(layout(average).shape))
    kept = f"{layer}: {100 * total:.1f} % of {shape[0]} x {inputs} weights are kept"
    low, high = float(average.min()), float(average.max())
    alt = f"{name}, {kept}, of an input {100 * low:.1f} to {100 * high:.1f} %"
    shades = layout((average - low) / (high - low) if high > low else average)
    found = [Picture(data_uri(shades, scale), alt, f"{name}: inputs, {100 * low:.0f} to {100 * high:.0f} % kept")]
    masks = [bits for text in (units if isinstance(units, list) else [])[:MOST_UNITS] if (bits := _bits(text, inputs))]
    if masks:
        tiles = [np.pad(layout(np.array(bits, dtype=np.float64)), 1, constant_values=0.25) for bits in masks]
        columns = max(1, min(8, 400 // (2 * tiles[0].shape[1])))
        while len(tiles) % columns:
            tiles.append(np.zeros_like(tiles[0]))
        sheet = np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
        alt = f"{name}, {layer}: the masks of the first {len(masks)} units"
        found.append(Picture(data_uri(sheet, max(1, 480 // max(sheet.shape))), alt, f"{name}: units"))
    return found


def _bits(text: Any, count: int) -> list[int]:
    try:
        packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    except (TypeError, ValueError):
        return []
    return [int(bit) for bit in np.unpackbits(packed)[:count]] if packed.size * 8 >= count else []


def _layout(shape: tuple[int, ...]) -> Any:
    """Return the function that arranges the inputs of a unit as a picture: channels lie side by side."""
    inputs = math.prod(shape)
    if len(shape) == 1:  # the pixels of a square image, of one channel or three, else one line
        for channels in (1, 3):
            side = math.isqrt(inputs // channels)
            if channels * side * side == inputs:
                shape = (channels, side, side)
                break
    height, width = (shape[-2], shape[-1]) if len(shape) > 2 else (1, inputs)

    def arranged(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.hstack(list(values.reshape(-1, height, width)))

    return arranged


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
