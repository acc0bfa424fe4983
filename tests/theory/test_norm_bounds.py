"""The norm-based bounds: hand-computed values, how they scale, and cushions against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from stochprune.theory import norm_bounds
from stochprune.theory.compression import outputs
from stochprune.theory.norm_bounds import Norms

FORMULAS = [norm_bounds.neyshabur_2015, norm_bounds.bartlett_2017, norm_bounds.neyshabur_2017, norm_bounds.galanti_2023]


@pytest.fixture
def weights(generator):
    shapes = {"a": (8, 6), "b": (7, 8), "c": (3, 7)}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


def test_norms():
    norms = Norms.of(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 5.0]]))
    assert norms.frobenius == pytest.approx(math.sqrt(50))
    assert norms.two_one == pytest.approx(10)
    assert (norms.width, norms.largest_row, norms.inputs) == (3, 5.0, 2)
    exact = math.sqrt((50 + math.sqrt(50**2 - 4 * 15**2)) / 2)  # det of the 2x2 Gram matrix [[9, 12], [12, 41]] is 225
    assert exact <= norms.spectral <= exact * (1 + 1e-6)


def test_values_by_hand():
    one = Norms(spectral=2.0, frobenius=3.0, two_one=4.0, width=10, largest_row=1.5, inputs=7)
    two = [one, one]
    assert norm_bounds.neyshabur_2015(two, 5.0, 0.5, 100) == pytest.approx(5 * 4 * 9 / (0.5 * 10))
    spread = (2 * 2 ** (2 / 3)) ** 1.5
    assert norm_bounds.bartlett_2017(two, 5.0, 0.5, 100) == pytest.approx(5 * math.log(10) * 4 * spread / 5)
    inside = 25 * 4 * 10 * math.log(20) * 16 * (2 * 9 / 4) / (0.25 * 100)
    assert norm_bounds.neyshabur_2017(two, 5.0, 0.5, 100) == pytest.approx(math.sqrt(inside))
    expected = 5 * (1 + math.sqrt(4 * math.log(2))) * 3 * 1.5 * math.sqrt(7) / 5
    assert norm_bounds.galanti_2023(two, 5.0, 0.5, 100) == pytest.approx(expected)


def test_fewer_inputs_lower_the_bound_of_sparse_networks():
    """Equal row norms, a quarter of the inputs: each layer but the first gives a factor of one half."""
    dense = [torch.full((16, 16), 0.25), torch.full((16, 16), 0.25), torch.full((1, 16), 0.25)]
    sparse = []
    for w in dense:
        pruned = torch.zeros_like(w)
        for row in range(len(w)):
            pruned[row, (row + torch.arange(4)) % 16] = 0.5
        sparse.append(pruned)
    values = [norm_bounds.galanti_2023(list(map(Norms.of, network)), 1.0, 1.0, 10) for network in (dense, sparse)]
    assert values[1] == pytest.approx(values[0] / 4)


def test_the_bound_of_sparse_networks_exceeds_the_complexity_of_a_network_fitted_to_signs(generator):
    """Networks of two layers with one input each: the best of them is known for each vector of signs.

    With f(x) = b relu(<w, x>), |w| <= 1 and |b| <= 1, the supremum over w of the mean of s f(x) is at least that of a
    dense grid of directions. The mean over random signs must stay below the bound.
    """
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    angles = torch.linspace(0, 2 * math.pi, 500, dtype=torch.float64)
    outputs_of_all = (x @ torch.stack([angles.cos(), angles.sin()])).relu()  # [40, 500]
    signs = torch.randint(0, 2, (400, 40), generator=generator).double() * 2 - 1
    measured = float((signs @ outputs_of_all / 40).abs().amax(1).mean())
    one = Norms(spectral=1.0, frobenius=1.0, two_one=1.0, width=2, largest_row=1.0, inputs=1)
    radius = float(x.square().sum(1).mean().sqrt())  # the derivation needs the root mean square only
    bound = norm_bounds.galanti_2023([one, one], radius, 1.0, 40)
    assert 0.05 * bound < measured < bound


@pytest.mark.parametrize("formula", FORMULAS)
def test_they_do_not_depend_on_the_scale_of_the_network(formula, weights):
    """Layers times 2, outputs and so margins times 8."""
    norms = [Norms.of(w) for w in weights.values()]
    doubled = [Norms.of(2 * w) for w in weights.values()]
    assert formula(doubled, 1.0, 8.0, 50) == pytest.approx(formula(norms, 1.0, 1.0, 50), rel=1e-6)


@pytest.mark.parametrize("formula", FORMULAS)
def test_they_fall_with_the_root_of_the_examples(formula, weights):
    norms = [Norms.of(w) for w in weights.values()]
    assert formula(norms, 1.0, 1.0, 400) == pytest.approx(formula(norms, 1.0, 1.0, 100) / 2)


def test_cushions_equal_those_by_autograd(weights, generator):
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    found = norm_bounds.cushions(weights, x)
    matrices = list(weights.values())
    for i, matrix in enumerate(matrices):
        layer, inter = math.inf, 1 / math.sqrt(len(matrix))
        for example in x:
            hidden = example
            for j in range(i):
                hidden = (matrices[j] @ hidden).relu()
            out = matrix @ hidden
            layer = min(layer, float(out.norm() / (matrix.norm() * hidden.norm())))
            for later in range(i + 1, 3):

                def rest(h, i=i, later=later):
                    for j in range(i + 1, later + 1):
                        h = matrices[j] @ h.relu()
                    return h

                jacobian = torch.autograd.functional.jacobian(rest, out)
                inter = min(inter, float((jacobian @ out).norm() / (jacobian.norm() * out.norm())))
        assert found.layer[i] == pytest.approx(layer)
        assert found.interlayer[i] == pytest.approx(inter)
    assert found.largest_output == pytest.approx(float(outputs(weights, x).norm(dim=1).max()))
    assert found.contraction >= 1
    total = sum(1 / (a * b) ** 2 for a, b in zip(found.layer, found.interlayer, strict=True))
    expected = found.contraction * 3 * found.largest_output * math.sqrt(total / 10) / 0.5
    assert norm_bounds.arora_2018(found, 0.5, 10) == pytest.approx(expected)
