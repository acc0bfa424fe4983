"""Structured masks: against autograd of the definition, at the address of their own small matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stochprune import keep_mask, rng
from stochprune.functional import mask, masked_linear_blocks
from tests.backends.cases import ESTIMATORS
from tests.functional.definitions import AT, mask_at, saved_bytes

OPS = torch.ops.stochprune
SHAPES = {"rows": (6, 1), "columns": (1, 8), "blocks": (3, 2), "weights": (6, 8), "all": (1, 1)}  # of logits, [6, 8]


def tensors(generator, logits, m=4, dtype=torch.float64):
    return [torch.randn(*s, generator=generator, dtype=dtype).requires_grad_() for s in ((m, 8), (6, 8), logits, (6,))]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_values_and_gradients_equal_autograd_of_the_definition(kind, estimator, generator):
    inputs = tensors(generator, SHAPES[kind])
    x, weight, logits, bias = inputs
    options = {"estimator": estimator, "temperature": 0.7}
    y = masked_linear_blocks(*inputs, **AT, **options, samples=3)
    outputs = []
    for draw in (11, 12, 13):
        z = mask(logits, **{**AT, "draw": draw}, **options)
        z = z.repeat_interleave(6 // logits.shape[0], 0).repeat_interleave(8 // logits.shape[1], 1)
        outputs.append(F.linear(x, z * weight, bias))
    expected = torch.stack(outputs)
    torch.testing.assert_close(y, expected)
    for got, want in zip(
        torch.autograd.grad(y.sin().sum(), inputs), torch.autograd.grad(expected.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mask_is_that_of_the_definition(estimator, generator):
    logits = torch.randn(5, 3, 7, generator=generator, dtype=torch.float64).requires_grad_()
    expected = mask_at(logits, estimator, 0.6)
    z = mask(logits, **AT, estimator=estimator, temperature=0.6)
    torch.testing.assert_close(z, expected)
    weights = torch.randn(5, 3, 7, generator=generator, dtype=torch.float64)
    got, want = (torch.autograd.grad((t * weights).sum(), logits)[0] for t in (z, expected))
    torch.testing.assert_close(got, want)


def test_row_masks_are_the_contract_s(generator):
    logits = torch.randn(6, 1, generator=generator)
    y = masked_linear_blocks(torch.eye(8), torch.ones(6, 8), logits, **AT)
    kept = keep_mask(rng.threshold_from_logits(logits), **AT)
    assert torch.equal(y.mT != 0, kept.expand(6, 8))


def test_draws_give_each_example_its_own_mask(generator):
    x, weight, logits, bias = tensors(generator, (3, 2))
    y = masked_linear_blocks(x, weight, logits, bias, **{**AT, "draw": torch.arange(4)})
    for i in range(4):
        torch.testing.assert_close(y[i], masked_linear_blocks(x[i], weight, logits, bias, **{**AT, "draw": i}))


@pytest.mark.parametrize("kind", SHAPES)
def test_no_masked_weight_is_saved(kind, generator):
    inputs = tensors(generator, SHAPES[kind], m=2)
    saved = saved_bytes(lambda: masked_linear_blocks(*inputs, **AT), inputs)
    assert max(saved) <= 8 * max(16, inputs[2].numel())  # float64 activations and the small mask


def test_mask_passes_opcheck(generator):
    logits = torch.randn(3, 4, generator=generator).requires_grad_()
    torch.library.opcheck(OPS.mask.default, (logits, torch.tensor([1]), torch.tensor([2, 3]), 5, "concrete", 0.5, 0, 0))


@pytest.mark.slow
def test_compiled_gives_the_eager_values(generator):
    logits = torch.randn(3, 4, generator=generator).requires_grad_()
    x, weight = torch.randn(2, 8, generator=generator), torch.randn(6, 8, generator=generator)
    step = lambda d: masked_linear_blocks(x, weight, logits, seed=torch.tensor([7]), draw=d, stream=3)  # noqa: E731
    draw = torch.tensor([3])
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(draw), step(draw))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"logits": torch.ones(4, 2)}, ValueError, r"logits \(4, 2\).* weight \(6, 8\)"),
        ({"logits": torch.ones(6)}, ValueError, r"logits \(6,\)"),
        ({"logits": torch.ones(6, 0)}, ValueError, r"logits \(6, 0\)"),
        ({"logits": torch.full((6, 1), float("nan"))}, ValueError, "logits .*NaN"),
        ({"logits": torch.ones(6, 1, dtype=torch.int64)}, TypeError, "logits.*int64"),
        ({"estimator": "reinforce"}, ValueError, "estimator.*'reinforce'"),
    ],
)
def test_bad_input(change, error, message):
    given = {"x": torch.ones(5, 8), "weight": torch.ones(6, 8), "logits": torch.ones(6, 1), **AT, **change}
    with pytest.raises(error, match=message):
        masked_linear_blocks(**given)
