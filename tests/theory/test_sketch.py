"""Sketches by random bipartite graphs: what they are, and what is recovered from them."""

from __future__ import annotations

import numpy as np
import pytest

from stochprune.theory import sketch


def test_a_graph_has_its_ones_in_each_column():
    a = sketch.bipartite(9, 40, 4, seed=0, name="A")
    assert set(np.unique(a)) == {0, 1} and (a.sum(0) == 4).all()
    assert not np.array_equal(a, sketch.bipartite(9, 40, 4, seed=0, name="B"))
    assert (a.sum(1) > 0).all() and np.abs(a.mean() - 4 / 9) < 1e-12
    with pytest.raises(ValueError, match=r"ones.*got 4"):
        sketch.bipartite(3, 5, 4, seed=0, name="A")


@pytest.mark.parametrize("per_line", [1, 3])
def test_a_sparse_matrix_has_so_many_entries_in_each_line(per_line):
    x = sketch.sparse_matrix(20, per_line, seed=1, trial=0) != 0
    assert (x.sum(0) == per_line).all() and (x.sum(1) == per_line).all()


def test_the_recovered_matrix_has_the_sketch_and_no_larger_norm():
    x = sketch.sparse_matrix(12, 3, seed=0, trial=0)
    a, b = (sketch.bipartite(5, 12, 2, 0, side) for side in "AB")  # too few rows
    y = sketch.sketch(x, a, b)
    found = sketch.recover(y, a, b)
    np.testing.assert_allclose(sketch.sketch(found, a, b), y, atol=1e-8)
    assert np.abs(found).sum() < np.abs(x).sum() - 1e-3  # another one is smaller: not recovered


def test_recovery_from_enough_rows_and_not_from_too_few():
    assert sketch.success(16, 3, rows=15, trials=4, seed=0) == 1
    assert sketch.success(16, 4, rows=6, trials=4, seed=0) == 0


def test_a_rectangular_problem_by_hand():
    """One row of A sums three entries: the l1 solution puts it all on one entry, of either value the same sum."""
    a, b = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), np.eye(1)
    x = np.array([[0.0], [2.0], [0.0]])
    np.testing.assert_allclose(sketch.recover(a @ x, a, b), x, atol=1e-9)


def test_no_solution():
    a = np.array([[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="sketch"):
        sketch.recover(np.array([[1.0], [2.0]]), a, np.eye(1))


def test_predicted_rows_grow_with_both():
    assert sketch.predicted_rows(64, 4) > sketch.predicted_rows(64, 1) > sketch.predicted_rows(16, 1)
