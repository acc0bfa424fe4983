"""The op of sparse LoRA: values and gradients of its formula, its dropout, what it saves, and dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import rng
from stochprune.functional import masked_lora_linear
from stochprune.functional.masked_lora import DROPOUT_STREAM
from tests.backends.cases import ESTIMATORS
from tests.functional.definitions import AT, mask_at, saved_bytes

NAMES = ("x", "weight", "lora_a", "lora_b", "logits", "bias")
SCALE = 0.7


def tensors(generator, dtype=torch.float64, m=5, n=6, k=70, r=3) -> dict[str, Tensor]:
    shapes = ((m, k), (n, k), (r, k), (n, r), (n, k), (n,))
    made = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    made[1][made[4].roll(1, 0) > 0] = 0  # half of the weights, of which a learnt mask keeps some
    return {name: t.requires_grad_() for name, t in zip(NAMES, made, strict=True)}


def kept_activations(x: Tensor, dropout: float, before: int = 0) -> Tensor:
    """The factors of the dropout's definition, [M, K], from column ``before`` on."""
    keep = round((1 - dropout) * rng.LEVELS)
    u = rng.uniform16(*x.shape, **{**AT, "stream": AT["stream"] ^ DROPOUT_STREAM}, col_offset=before) & 0x7FFF
    return (u < keep).to(x) * rng.LEVELS / keep


def formula(t: dict[str, Tensor], z: Tensor, dropout: float, before: int) -> Tensor:
    base, update = F.linear(t["x"], z * t["weight"], t["bias"]), z * SCALE * (t["lora_b"] @ t["lora_a"])
    return base + F.linear(t["x"] * kept_activations(t["x"], dropout, before), update)


@pytest.mark.parametrize(("dropout", "before"), [(0.0, 0), (0.3, 0), (0.3, 140)])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "fixed"])
def test_values_and_gradients_equal_autograd_of_the_formula(estimator, dropout, before, generator):
    t = tensors(generator)
    if estimator == "fixed":
        del t["logits"]
        z, options = (t["weight"] != 0).double(), {}
    else:
        z, options = mask_at(t["logits"], estimator, 0.6), {"estimator": estimator, "temperature": 0.6}
    y = masked_lora_linear(**t, **AT, **options, scale=SCALE, dropout=dropout, dropout_offset=before)
    want = formula(t, z, dropout, before)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    found, expected = (torch.autograd.grad((out.sin() * out).sum(), [*t.values()]) for out in (y, want))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("fixed", [False, True])
def test_only_the_gradients_that_are_needed(fixed, dropout, generator):
    """Those of the adapter alone are the same as with all others."""
    t = tensors(generator, torch.float32)
    if fixed:
        del t["logits"]
    run = lambda t: masked_lora_linear(**t, **AT, scale=SCALE, dropout=dropout).square().sum()  # noqa: E731
    want = torch.autograd.grad(run(t), (t["lora_a"], t["lora_b"]))
    alone = {name: v.detach().requires_grad_(name.startswith("lora")) for name, v in t.items()}
    run(alone).backward()
    assert torch.equal(alone["lora_a"].grad, want[0]) and torch.equal(alone["lora_b"].grad, want[1])
    assert all(v.grad is None for name, v in alone.items() if not name.startswith("lora"))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("fixed", [False, True])
def test_no_weight_and_no_mask_is_saved(fixed, dropout, generator):
    t = tensors(generator, torch.float32, n=64, k=256)
    if fixed:
        del t["logits"]
    forward = lambda: masked_lora_linear(**t, **AT, dropout=dropout)  # noqa: E731
    assert sum(saved_bytes(forward, t.values())) <= 64  # seed and draw


def test_the_draws_of_one_call_are_those_of_single_calls(generator):
    t = tensors(generator, torch.float32)
    many = masked_lora_linear(**t, **AT, dropout=0.3, samples=3)
    for i, y in enumerate(many):
        torch.testing.assert_close(y, masked_lora_linear(**t, **{**AT, "draw": AT["draw"] + i}, dropout=0.3))


def test_the_dropout_has_its_probability_and_its_own_bits(generator):
    x = torch.ones(64, 256)
    one = {"weight": torch.zeros(256, 256), "lora_a": torch.eye(256), "lora_b": torch.eye(256)}
    keep_all = torch.full((256, 256), 40.0)
    y = masked_lora_linear(x, **one, logits=keep_all, **AT, dropout=0.25)
    assert torch.equal(y, kept_activations(x, 0.25))
    assert (y > 0).float().mean().item() == pytest.approx(0.75, abs=0.015)  # 4.5 standard deviations
    following = masked_lora_linear(x, **one, logits=keep_all, **{**AT, "draw": AT["draw"] + 1}, dropout=0.25)
    assert not torch.equal(y, following)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
def test_a_weight_in_bfloat16(fixed, adapter, generator):
    """The sum is rounded once, to x's dtype: the result is that of the merged weight."""
    t = {name: v.detach() for name, v in tensors(generator, torch.bfloat16).items()}
    t |= {"lora_a": t["lora_a"].to(adapter), "lora_b": t["lora_b"].to(adapter)}
    logits = t.pop("logits").float()
    update = t["weight"].to(adapter) + SCALE * (t["lora_b"] @ t["lora_a"])
    z = t["weight"] != 0 if fixed else mask_at(logits, "straight_through", 1.0) > 0.5
    want = F.linear(t["x"], torch.where(z, update, 0).bfloat16(), t["bias"])
    t["lora_a"].requires_grad_()
    y = masked_lora_linear(**t, logits=None if fixed else logits, **AT, scale=SCALE)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, want, rtol=0.03, atol=0.3 if adapter == torch.bfloat16 else 0.1)
    (grad,) = torch.autograd.grad(y.float().sum(), t["lora_a"])
    assert grad.dtype == adapter and grad.isfinite().all()


def test_under_autocast_the_sum_is_not_rounded(generator):
    t = {name: v.detach() for name, v in tensors(generator, torch.float32).items() if name != "logits"}
    t["weight"] = t["weight"] * 256  # an update below the weight's bfloat16 steps
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_lora_linear(**t, **AT)
    narrow = {**t, "x": t["x"].bfloat16(), "bias": t["bias"].bfloat16()}
    assert torch.equal(y, masked_lora_linear(**narrow, **AT))


def test_operators_are_registered_soundly(generator):
    t = tensors(generator, torch.float32, n=4, k=8)
    at = (torch.tensor([3]), torch.tensor([1]), 7, "straight_through", 1.0, 0, 0, SCALE)
    for logits, keep in ((t["logits"], 20000), (None, rng.LEVELS)):
        given = (t["x"], t["weight"], t["lora_a"], t["lora_b"], logits, t["bias"], *at, keep, 8)
        torch.library.opcheck(torch.ops.stochprune.masked_lora_linear.default, given)
