"""Keep probabilities: initial ones from scores, and their sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stochprune.arguments import checked
from stochprune.masks.groups import expand_groups, group_scores
from stochprune.masks.select import check_scores
from stochprune.shards import sum_by_layout


@checked
def keep_probabilities(
    scores: Mapping[str, Tensor],
    keep: float = 0.95,
    *,
    clamp: float = 3.0,
    pattern: str | None = None,
    scope: str = "global",
) -> dict[str, Tensor]:
    """Return keep probabilities near ``keep`` that are higher for weights of higher score.

    The logit of a weight is that of ``keep`` plus its standardised score, ``(score - median) / std`` over all weights
    or over those of its layer, limited to ``[-clamp, clamp]``. If all scores are equal, every probability is ``keep``.
    It is a start for a budget that falls::

        start = sp.masks.keep_probabilities(sp.scores.magnitude(model))
        sp.convert(model, start)

    Args:
        scores: floating tensors by weight name; higher means keep.
        keep: the probability of a weight of median score, in (0, 1).
        clamp: limit on the shift of a logit, positive.
        pattern: ``"rows"``, ``"columns"`` or ``"16x16"``: the mean score of a group counts, as in
            :func:`stochprune.masks.from_scores`. Other patterns leave single weights.
        scope: ``"global"`` or ``"layer"``, which standardises the scores of each tensor alone: for budgets that are
            held in each layer, within which scores may hardly differ beside those of another layer.

    Returns:
        float64 tensors in (0, 1) by weight name, of the scores' shapes, on their devices. Pass them to
        :func:`stochprune.convert` as ``masks``.

    Raises:
        TypeError: a score that is not a floating tensor.
        ValueError: no scores, NaN or infinite scores, or a value outside its range.
    """
    if not 0 < keep < 1:
        raise ValueError(f"keep_probabilities: keep must lie strictly between 0 and 1, got {keep}")
    if not 0 < clamp < math.inf:
        raise ValueError(f"keep_probabilities: clamp must be positive and finite, got {clamp}")
    if scope not in ("global", "layer"):
        raise ValueError(f"keep_probabilities: scope must be 'global' or 'layer', got {scope!r}")
    check_scores("keep_probabilities", "score", scores)
    grouped = pattern if pattern is not None and ":" not in pattern else None
    values = {
        name: (score if grouped is None else group_scores("keep_probabilities", name, score, grouped)).double()
        for name, score in scores.items()
    }
    if infinite := sum(int(value.isinf().sum()) for value in values.values()):
        count = sum(value.numel() for value in values.values())
        raise ValueError(f"keep_probabilities: {infinite} of {count} scores are infinite")
    centre = math.log(keep / (1 - keep))
    found = {}
    for together in [values] if scope == "global" else [{name: value} for name, value in values.items()]:
        device = next(iter(together.values())).device
        flat = torch.cat([value.flatten().to(device) for value in together.values()])
        median, std = flat.median().item(), flat.std(correction=0).item()
        for name, value in together.items():
            found[name] = torch.sigmoid(centre + ((value - median) / (std or 1.0)).clamp(-clamp, clamp))
    return found if grouped is None else {name: expand_groups(q, scores[name], grouped) for name, q in found.items()}


def expected_kept(logits: Sequence[Tensor]) -> Tensor:
    """Return sum(sigmoid(logit)) over all tensors and processes, a float64 scalar on the device of the first."""

    def kept(parts: Sequence[Tensor]) -> Tensor:
        sums = [torch.sigmoid(wide(part)).sum(dtype=torch.float64).to(parts[0].device) for part in parts]
        return torch.stack(sums).sum()

    return sum_by_layout(kept, logits)


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or float64; in 16 bits, probabilities near 1 would be 1/256 apart."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
