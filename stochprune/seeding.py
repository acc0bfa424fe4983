"""Local generators for everything that is random but no stochastic mask: starts, orders of batches, shuffles."""

from __future__ import annotations

import hashlib

import numpy as np

SEED_LIMIT = 1 << 64


def check_seed(op: str, seed: int) -> None:
    """Raise ``ValueError`` for the function ``op`` unless the seed is an integer in 0 .. 2^64 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"{op}: seed must be an integer in 0 .. 2^64 - 1, got {seed!r}")


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """The generator at one address.

    Streams at different addresses are independent, and none depends on what was drawn elsewhere before.

    Args:
        seed: 0 .. 2^64 - 1, of the run.
        path: what the numbers are for, such as ``("shuffle", "fc1.weight")``.

    Raises:
        ValueError: a seed outside its range.
    """
    check_seed("generator", seed)
    digest = hashlib.blake2s(repr((seed, *path)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
