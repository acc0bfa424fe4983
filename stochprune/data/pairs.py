"""Checks that each batch is a pair of inputs and labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from stochprune.arguments import shown


def pairs(batches: Iterable[object], what: str, labels: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over batches, each checked to be a pair (x, y) of tensors.

    Args:
        batches: a ``DataLoader``, a list of pairs, or :class:`stochprune.data.Batches`.
        what: the function or argument that the message names.
        labels: whether labels are used; if not, y may be anything, such as None, and x a dictionary of inputs.

    Raises:
        TypeError: a batch of another kind, such as a dictionary, three tensors, or one tensor.
    """
    for number, batch in enumerate(batches):
        if not _is_pair(batch, labels):
            raise TypeError(
                f"{what}: batch {number} must be a pair (inputs, labels) of tensors, got {kind_of_batch(batch)}. "
                "Give a loader of pairs, such as [(b['x'], b['y']) for b in loader], or a DataLoader with a collate_fn"
            )
        yield batch[0], batch[1]  # type: ignore[index]


def _is_pair(batch: object, labels: bool) -> bool:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return False
    if not labels:
        return isinstance(batch[0], Tensor | Mapping)
    return isinstance(batch[0], Tensor) and isinstance(batch[1], Tensor)


def kind_of_batch(batch: object) -> str:
    """Say in words what a batch is, for a message."""
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with the keys {', '.join(map(str, list(batch)[:8])) or 'none'}"
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch[:8]) or 'nothing'}"
    return shown(batch)
