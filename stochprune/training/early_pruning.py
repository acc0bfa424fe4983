"""The early pruning indicator, which says when to prune, and a callback that stops a training with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.training.state import State


@checked
def similarity(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Return ``1 - mean over layers of |a - b| / (a + b)``: the similarity of two pruned networks.

    Args:
        a, b: numbers of weights or channels kept, by layer; the same layers. Two empty layers are equal.

    Raises:
        ValueError: different layers, or none.
    """
    if not a or set(a) != set(b):
        raise ValueError(
            f"the networks must have the same layers, got {', '.join(a) or 'none'} and {', '.join(b) or 'none'}"
        )
    return 1 - sum(abs(a[name] - b[name]) / max(1, a[name] + b[name]) for name in a) / len(a)


@checked
def early_pruning_indicator(kept: Sequence[Mapping[str, int]], window: int = 5) -> float | None:
    """Return the EPI: the mean similarity of the last network to the ``window`` networks before it, or None if fewer.

    Shen, Molchanov, Yin and Alvarez 2022, "When to prune? A policy towards early structural pruning" (arXiv
    2110.12007).

    Args:
        kept: numbers kept by layer, one entry per epoch.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if len(kept) <= window:
        return None
    return sum(similarity(kept[-1], earlier) for earlier in kept[-1 - window : -1]) / window


class PruneEarly:
    """A callback that ends a training once the masks that it would give no longer change much.

    After each epoch it makes masks and counts the kept weights. The training ends when the indicator is at least
    ``threshold`` and not below any of the last ``window`` indicators. This is our reading of the paper's rule. The
    counts and the indicator (``epi``) are stored in the history, so a resumed run continues with them.

    Args:
        masks: makes the masks with which the model would be pruned now, such as
            ``lambda model: masks.from_scores(scores.magnitude(model), 0.8)``; they are not applied.
        threshold: 0.983 for magnitudes and 0.944 for gradients in the paper.
        window: the number of earlier epochs to compare with.
    """

    @checked
    def __init__(
        self, masks: Callable[[nn.Module], Mapping[str, Tensor]], threshold: float = 0.983, window: int = 5
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.masks, self.threshold, self.window = masks, threshold, window

    def on_epoch(self, state: State) -> None:
        counts = {f"kept {name}": int(mask.count_nonzero()) for name, mask in self.masks(state.model).items()}
        state.history[-1].update(counts)
        kept = [{name: int(entry[name]) for name in counts} for entry in state.history]
        now = early_pruning_indicator(kept, self.window)
        if now is None:
            return
        earlier = [entry["epi"] for entry in state.history[-1 - self.window : -1] if "epi" in entry]
        state.history[-1]["epi"] = now
        state.stop |= now >= self.threshold and all(now >= before for before in earlier)
