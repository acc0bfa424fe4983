"""Sketches of sparse matrices by random bipartite graphs, and recovery by l1 minimisation.

A sketch is ``Y = A X B^T`` with 0/1 matrices A, B [rows, p] that have a few ones at random positions in each column.
Let the matrix X [p, p] have at most j entries in each row and column. If ``rows`` is of the order ``sqrt(j p) ln p``,
then with high probability X has the smallest sum of absolute values among all matrices with this sketch (Dasarathy,
Shah, Bhaskar and Nowak 2015, "Sketching sparse matrices, covariances, and graphs via tensor products"; used by Guha et
al. 2023, arXiv 2305.18789, to count the networks that pruning can reach).
"""

from __future__ import annotations

import math

import numpy as np

from stochprune.extras import extra
from stochprune.seeding import generator


def bipartite(rows: int, columns: int, ones: int, seed: int, name: str) -> np.ndarray:
    """Return a 0/1 matrix [rows, columns] with ``ones`` ones in each column, at random positions.

    Raises:
        ValueError: more ones than rows, or fewer than one.
    """
    if not 1 <= ones <= rows:
        raise ValueError(f"ones must lie in 1 .. {rows}, the number of rows, got {ones}")
    numbers = generator(seed, "bipartite", name, rows, columns)
    order = np.argsort(numbers.random((rows, columns)), axis=0)
    return (order < ones).astype(np.float64)


def sketch(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Y = A X B^T."""
    return a @ x @ b.T


def recover(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the X of smallest sum of absolute values with A X B^T = Y, by linear programming (HiGHS).

    Raises:
        ValueError: no X has this sketch.
        RuntimeError: the solver failed.
    """
    with extra("studies", "recover"):  # here: scipy takes a second to import
        from scipy import sparse
        from scipy.optimize import linprog

    p, q = a.shape[1], b.shape[1]
    system = sparse.kron(sparse.csr_matrix(a), sparse.csr_matrix(b), format="csr")  # acts on X in row-major order
    both = sparse.hstack([system, -system], format="csr")  # X = U - V with U, V >= 0
    done = linprog(np.ones(2 * p * q), A_eq=both, b_eq=y.ravel(), bounds=(0, None), method="highs")
    if done.status == 2:
        raise ValueError("no matrix has this sketch")
    if not done.success:
        raise RuntimeError(f"the sketch could not be inverted: {done.message}")
    u, v = done.x[: p * q], done.x[p * q :]
    return (u - v).reshape(p, q)


def predicted_rows(p: int, per_line: int) -> float:
    """Return sqrt(j p) ln p, the order of the number of rows that recovery needs."""
    return math.sqrt(per_line * p) * math.log(p)


def sparse_matrix(p: int, per_line: int, seed: int, trial: int) -> np.ndarray:
    """Return [p, p] with ``per_line`` Gaussian entries in each row and column: disjoint permutations."""
    numbers = generator(seed, "sparse matrix", p, per_line, trial)
    rows, columns = numbers.permutation(p), numbers.permutation(p)
    x = np.zeros((p, p))
    for shift in numbers.choice(p, per_line, replace=False):
        x[rows, np.roll(columns, shift)] = numbers.standard_normal(p)
    return x


def success(p: int, per_line: int, rows: int, trials: int, seed: int) -> float:
    """Return the share of random sparse matrices recovered to 1e-6 from sketches of ``rows`` rows and columns."""
    ones = min(round(2 * math.log(p)), (rows + 1) // 2)
    found = 0
    for trial in range(trials):
        x = sparse_matrix(p, per_line, seed, trial)
        a, b = (bipartite(rows, p, ones, seed, f"{side} {trial}") for side in "AB")
        found += bool(np.abs(recover(sketch(x, a, b), a, b) - x).max() < 1e-6)
    return found / trials
