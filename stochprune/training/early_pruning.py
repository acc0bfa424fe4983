"""When to prune: the early pruning indicator, and a callback that stops a training by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.training.loop import State


@checked
def similarity(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """``1 - mean over layers of |a - b| / (a + b)``: how alike two pruned networks are, by what their layers keep.

    Args:
        a, b: numbers kept (weights or channels) by layer; the same layers. Two empty layers are alike.

    Raises:
        ValueError: different layers, or none.
    """
    if not a or set(a) != set(b):
        raise ValueError(f"the networks' layers differ: {', '.join(a) or 'none'} and {', '.join(b) or 'none'}")
    return 1 - sum(abs(a[name] - b[name]) / max(1, a[name] + b[name]) for name in a) / len(a)


@checked
def early_pruning_indicator(kept: Sequence[Mapping[str, int]], window: int = 5) -> float | None:
    """EPI: the mean similarity of the last network to each of the ``window`` before it; None until there are as many.

    Shen, Molchanov, Yin and Alvarez 2022, "When to prune? A policy towards early structural pruning" (arXiv
    2110.12007).

    Args:
        kept: numbers kept by layer, an entry an epoch.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if len(kept) <= window:
        return None
    return sum(similarity(kept[-1], earlier) for earlier in kept[-1 - window : -1]) / window


class PruneEarly:
    """A callback that ends a training once the network that would be pruned now is stable.

    After each epoch the masks are made and counted. The training ends when the indicator reaches ``threshold`` and is
    not below any of the last ``window``. That is our reading of the paper's rule. The counts and the indicator
    (``epi``) go to the history's entries, so a resumed run goes on with them.

    Args:
        masks: gives the masks that the model would be pruned by now, such as
            ``lambda model: masks.from_scores(scores.magnitude(model), 0.8)``; they are not applied.
        threshold: 0.983 for magnitudes and 0.944 for gradients in the paper.
        window: how many epochs back.
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
        state.stop = now >= self.threshold and all(now >= before for before in earlier)
