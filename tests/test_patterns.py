"""Conditioned Bernoullis by their definition: all patterns enumerated, each with its own weight."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from stochprune import patterns, rng
from stochprune.address import Mask

PATTERNS = [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8)]


def enumerated(logits, n):
    """{kept columns: probability} of one group, from independent Bernoullis conditioned on n of them keeping."""
    q = [1 / (1 + math.exp(-x)) for x in logits]
    joint = {}
    for kept in itertools.combinations(range(len(q)), n):
        joint[kept] = math.prod(q[j] if j in kept else 1 - q[j] for j in range(len(q)))
    total = sum(joint.values())
    return {kept: p / total for kept, p in joint.items()}


@pytest.mark.parametrize("n, m", PATTERNS)
def test_probabilities_are_conditioned_bernoullis(n, m, generator):
    logits = 2 * torch.randn(5, m, generator=generator, dtype=torch.float64)
    drawn, exact = patterns.probabilities(logits, n), patterns.log_probabilities(logits, n).exp()
    for g in range(5):
        expected = list(enumerated(logits[g].tolist(), n).values())
        np.testing.assert_allclose(exact[g], expected, rtol=1e-12)
        assert (drawn[g] - torch.tensor(expected)).abs().max() < 1.01 / 65536
        assert drawn[g].sum() == 1 and (drawn[g] * 65536 % 1 == 0).all()


@pytest.mark.parametrize("n, m", PATTERNS)
def test_inclusion_and_its_jacobian(n, m, generator):
    logits = 2 * torch.randn(1, m, generator=generator, dtype=torch.float64)
    joint = enumerated(logits[0].tolist(), n)
    pi = [sum(p for kept, p in joint.items() if j in kept) for j in range(m)]
    np.testing.assert_allclose(patterns.inclusion(logits, n, m)[0], pi, rtol=1e-12)
    for i in range(m):
        both = [sum(p for kept, p in joint.items() if i in kept and j in kept) for j in range(m)]
        covariance = [both[j] - pi[i] * pi[j] for j in range(m)]
        unit = torch.eye(m, dtype=torch.float64)[i : i + 1]
        np.testing.assert_allclose(patterns.inclusion_grad(unit, logits, n, m)[0], covariance, atol=1e-13)
    assert torch.autograd.gradcheck(lambda t: patterns.inclusion(t, n, m), logits.requires_grad_())


@pytest.mark.parametrize("n, m", PATTERNS)
def test_sampled_patterns_pass_a_chi_square_test(n, m, generator):
    groups = 40_000
    logits = torch.randn(1, m, generator=generator).repeat(200, groups // 200)
    mask = patterns.mask(logits, (n, m), Mask(torch.tensor([9]), torch.tensor([4]), 21))
    kept = patterns.groups(mask, m).reshape(-1, m)
    assert (kept.sum(1) == n).all()
    index = (kept[:, None] == patterns.kept(n, m, kept)).all(-1).double().argmax(1)
    p = patterns.probabilities(logits[:1, :m], n)[0]
    counts = torch.bincount(index, minlength=len(p))
    assert stats.chisquare(counts.numpy(), (p * groups).numpy()).pvalue > 1e-3


def test_the_uniform_of_the_first_column_chooses_the_pattern_in_lexicographic_order():
    """Vectors worked out by hand: equal logits of 2:4 give six patterns of about 10,923 of the 65,536 levels each."""
    logits = torch.zeros(3, 8)
    at = {"seed": 1, "draw": 2, "stream": 3}
    mask = patterns.mask(logits, (2, 4), Mask(torch.tensor([1]), torch.tensor([2]), 3))
    u = rng.uniform16(3, 8, **at)
    order = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    ends = [10923, 21845, 32768, 43691, 54613, 65536]  # floor(i / 6 * 65536 + 1/2)
    for row, group in itertools.product(range(3), range(2)):
        first = int(u[row, 4 * group])
        kept = order[next(i for i, end in enumerate(ends) if first < end)]
        assert mask[row, 4 * group : 4 * group + 4].nonzero().flatten().tolist() == list(kept)


def test_golden_vectors():
    logits = torch.arange(48, dtype=torch.float64).view(2, 24).mul(7.3).sin().mul(3)
    words = {(2, 4): [0x3C53C6, 0x65CACC], (1, 4): [0x282182, 0x214884], (4, 8): [0x78E187, 0x71E48E]}
    for (n, m), expected in words.items():
        mask = patterns.mask(logits, (n, m), Mask(torch.tensor([2021]), torch.tensor([11]), 5))
        bits = [sum(int(b) << k for k, b in enumerate(row)) for row in mask.long().tolist()]
        assert bits == expected, [hex(b) for b in bits]


def test_stable_where_odds_overflow():
    logits = torch.tensor([[800.0, -900.0, 3.0, 3.0], [-700.0, -701.0, -702.0, -703.0]], dtype=torch.float64)
    pi = patterns.inclusion(logits, 2, 4)
    np.testing.assert_allclose(pi[0], [1, 0, 0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(pi[1], patterns.inclusion(logits[1:] + 700, 2, 4)[0], rtol=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: patterns.parse("2of4"), "n:m.*got '2of4'"),
        (lambda: patterns.parse("-2:4"), "n:m.*got '-2:4'"),
        (lambda: patterns.check("op", 4, 4, 8), "op: .*got 4:4"),
        (lambda: patterns.check("op", 2, 5, 10), "op: .*got 2:5"),
        (lambda: patterns.check("op", 5, 8, 16), "op: .*got 5:8"),
        (lambda: patterns.check("op", 2, 4, 37), "op: 4 .*37 columns"),
    ],
)
def test_bad_patterns(call, message):
    with pytest.raises(ValueError, match=message):
        call()
