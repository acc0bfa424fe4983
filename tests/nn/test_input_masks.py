"""Masks of units that depend on the example: their bits, gradients, modes, and that the map learns."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import stochprune as sp
from stochprune.nn import InputDependentMask
from tests.nn.zoo import numbers


def _filled(layer: nn.Module) -> nn.Module:
    layer.to_empty(device="cpu")
    for i, parameter in enumerate(layer.parameters()):
        parameter.detach().copy_(numbers(*parameter.shape, seed=i + 1))
    return layer


CASES = {
    "linear": (lambda: nn.Linear(5, 7, device="meta"), (6, 5)),
    "linear of tokens": (lambda: nn.Linear(5, 7, device="meta"), (3, 2, 5)),
    "conv1d": (lambda: nn.Conv1d(5, 7, 2, device="meta"), (6, 5, 4)),
    "conv2d": (lambda: nn.Conv2d(5, 7, 2, padding=1, device="meta"), (6, 5, 3, 4)),
}


def make(case: str, **options: object) -> tuple[InputDependentMask, Tensor]:
    build, shape = CASES[case]
    module = InputDependentMask(_filled(build()), 4, keep=0.7, seed=3, stream=5, **options)
    module.outer.detach().copy_(numbers(7, 4))
    return module, numbers(*shape, seed=9)


def by_hand(module: InputDependentMask, x: Tensor, z: Tensor) -> Tensor:
    y = module.layer(x)
    return y * (z.view(y.shape) if isinstance(module.layer, nn.Linear) else z.view(*z.shape, *[1] * (y.dim() - 2)))


@pytest.mark.parametrize("case", CASES)
def test_each_example_has_the_contract_s_mask_of_its_own_logits(case):
    module, x = make(case)
    logits = module.logits(x).detach()
    assert logits.shape == (6, 7) and logits.std(0).min() > 0  # other examples, other logits
    for draw in range(2):
        threshold = sp.rng.threshold_from_logits(logits)
        z = sp.keep_mask(threshold, seed=3, draw=draw, stream=5)
        assert torch.equal(module(x), by_hand(module, x, z.float()))
    assert module.expected.item() == pytest.approx(torch.sigmoid(logits).mean().item())
    assert torch.equal(module.eval()(x), by_hand(module, x, (logits >= 0).float()))
    assert int(module.mask_draw) == 2


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_of_the_mean_mask(case):
    module, x = make(case, estimator="expected")
    parameters = [*module.parameters()]
    got = torch.autograd.grad((module(x).sin().sum() + module.expected), parameters)
    logits = module.logits(x)
    want = by_hand(module, x, torch.sigmoid(logits)).sin().sum() + torch.sigmoid(logits).mean()
    torch.testing.assert_close(got, torch.autograd.grad(want, parameters))


@pytest.mark.parametrize("estimator", ["straight_through", "concrete", "hard_concrete"])
def test_the_map_learns_which_units_an_example_needs(estimator):
    """Two kinds of examples need one unit each, and every kept unit has a price."""
    layer = _filled(nn.Linear(2, 2, bias=False, device="meta"))
    layer.weight.detach().copy_(torch.ones(2, 2))
    module = InputDependentMask(layer.requires_grad_(False), 8, keep=0.5, estimator=estimator, temperature=0.5)
    x = torch.eye(2).repeat(20, 1)
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        (F.mse_loss(module(x), x) + 0.01 * module.expected).backward()
        optimiser.step()
    assert torch.equal(module.eval()(x) > 0.5, x > 0.5)


def test_without_a_hidden_layer_the_masks_do_not_depend_on_the_input():
    module = InputDependentMask(_filled(nn.Linear(5, 7, device="meta")), 0, keep=0.3)
    logits = module.logits(numbers(4, 5))
    torch.testing.assert_close(torch.sigmoid(logits), torch.full((4, 7), 0.3))
    module(numbers(4, 5)).sum().backward()
    assert module.offset.grad.abs().min() > 0


def test_copies_checkpointing_and_resumption():
    module, x = make("conv2d")
    module(x)
    others = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), make("conv2d")[0]]
    others[-1].load_state_dict(module.state_dict())
    y = module(x)
    assert all(torch.equal(other(x), y) for other in others) and others[0].expected is not None
    again = checkpoint(others[0], x, use_reentrant=False)
    want = module(x)
    assert torch.equal(again, want)
    found, expected = (
        torch.autograd.grad(v.sin().sum(), m.layer.weight) for v, m in ((again, others[0]), (want, module))
    )
    assert torch.equal(*found, *expected)


def test_conversion_chooses_layers():
    model = nn.Sequential(_filled(nn.Linear(5, 7, device="meta")), nn.ReLU(), _filled(nn.Linear(7, 2, device="meta")))
    assert sp.nn.mask_units_by_input(model, "*", exclude="2.*", hidden=3) is model
    assert isinstance(model[0], InputDependentMask) and type(model[2]) is nn.Linear
    assert not torch.equal(model(numbers(6, 5)), model(numbers(6, 5)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("error")
def test_the_weights_of_its_layer_can_be_masked_too(case):
    module, x = make(case)
    model = sp.convert(
        nn.Sequential(module), masks={"0.layer.weight": torch.ones_like(module.layer.weight) > 0}, seed=7
    )
    masked, dense = model[0].layer, copy.deepcopy(module)
    assert isinstance(masked, sp.nn.masked_linear.MaskedLayer)
    w = masked.weight * sp.keep_mask(
        sp.rng.threshold_from_logits(masked.mask_logits.detach()).flatten(1), seed=7, draw=0, stream=masked.stream
    ).view(masked.weight.shape)
    z = sp.keep_mask(sp.rng.threshold_from_logits(module.logits(x).detach()), seed=3, draw=0, stream=5)
    dense.layer = _filled(CASES[case][0]())
    dense.layer.weight.data = w.detach()
    y = model(x)
    assert torch.allclose(y, by_hand(dense, x, z.float()), atol=1e-5)
    y.sum().backward()
    assert masked.mask_logits.grad.abs().max() > 0 and module.offset.grad.abs().max() > 0
    assert type(sp.harden(model, 0.5)[0].layer) in (nn.Linear, nn.Conv1d, nn.Conv2d)


def test_sampling_and_its_errors_reach_the_masks():
    module, x = make("linear")
    plain, draw = module.eval()(x), int(module.mask_draw)
    with sp.nn.sampling(module):
        assert not torch.equal(module(x), plain) and int(module.mask_draw) == draw + 1
    with sp.nn.sampling(module.train(), False):
        assert torch.equal(module(x), plain)
    sp.training.stochastic_error(module, x, torch.zeros(6, dtype=torch.int64), draws=3)
    assert int(module.mask_draw) == draw + 1 and module.sample is None
