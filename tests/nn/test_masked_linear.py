from __future__ import annotations

import copy
import io
import pickle
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import stochprune as sp
from stochprune import functional
from stochprune.nn import MaskedLinear


@pytest.fixture
def linear(generator):
    layer = nn.utils.skip_init(nn.Linear, 70, 9)
    for p in layer.parameters():
        nn.init.normal_(p, generator=generator)
    return layer


@pytest.fixture
def x(generator):
    return torch.randn(5, 70, generator=generator)


@pytest.mark.parametrize("name", ["weight", "mask_logits", "bias"])
def test_a_parametrisation_of_each_tensor_is_used(linear, x, name):
    """The layer finds its parameters without nn.Module, which alone knows a parametrisation."""
    layer = MaskedLinear.from_linear(linear, 0.5)
    given = {"weight": layer.weight, "mask_logits": layer.mask_logits, "bias": layer.bias}
    given[name] = given[name].detach() * -2
    expected = sp.functional.masked_linear(
        x, given["weight"], given["mask_logits"], given["bias"], seed=0, draw=0, stream=layer.stream
    )

    class MinusTwice(nn.Module):
        def forward(self, tensor):
            return tensor * -2

    torch.nn.utils.parametrize.register_parametrization(layer, name, MinusTwice())
    assert torch.equal(layer(x), expected)


def test_forward_is_the_op_at_consecutive_draws(linear, x):
    layer = MaskedLinear.from_linear(linear, 0.5, seed=2**64 - 1, stream=8)
    for draw in range(3):
        expected = sp.functional.masked_linear(
            x, linear.weight, layer.mask_logits, linear.bias, seed=2**64 - 1, draw=draw, stream=8
        )
        assert torch.equal(layer(x), expected)
    assert int(layer.mask_draw) == 3


def test_from_linear_adopts_the_parameters(linear):
    layer = MaskedLinear.from_linear(linear.eval())
    assert layer.weight is linear.weight and layer.bias is linear.bias and not layer.training
    torch.testing.assert_close(torch.sigmoid(layer.mask_logits), torch.full((9, 70), 0.95))


def test_evaluation_thresholds_and_sampling_can_be_forced(linear, x, generator):
    keep = torch.rand(9, 70, generator=generator).clamp(0.01, 0.99)
    layer = MaskedLinear.from_linear(linear, keep).eval()
    expected = F.linear(x, linear.weight * (keep >= 0.5), linear.bias)
    torch.testing.assert_close(layer(x), expected)
    assert int(layer.mask_draw) == 0
    layer.sample = True
    assert not torch.equal(layer(x), expected) and int(layer.mask_draw) == 1
    layer.train().sample = False
    torch.testing.assert_close(layer(x), expected)
    with sp.nn.sampling(layer):
        assert not torch.equal(layer(x), expected)
    with sp.nn.sampling(layer.eval(), False):
        torch.testing.assert_close(layer(x), expected)
    assert layer.sample is False


def test_to_linear_has_exact_zeros(linear, generator):
    keep = torch.rand(9, 70, generator=generator).clamp(0.01, 0.99)
    layer = MaskedLinear.from_linear(linear, keep)
    dense = layer.to_linear()
    assert type(dense) is nn.Linear
    assert torch.equal(dense.weight, torch.where(keep >= 0.5, linear.weight, 0.0))
    assert torch.equal(dense.bias, linear.bias) and dense.bias is not linear.bias
    assert torch.equal(layer.to_linear(torch.zeros(9, 70, dtype=torch.bool)).weight, torch.zeros(9, 70))


def test_a_resumed_layer_goes_on_with_the_next_mask(linear, x):
    layer = MaskedLinear.from_linear(linear, 0.5)
    layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    expected = [layer(x), layer(x)]
    file.seek(0)
    fresh = MaskedLinear.from_linear(copy.deepcopy(linear))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(fresh(x), y) for y in expected)


def test_a_dense_checkpoint_loads(linear):
    layer = MaskedLinear(70, 9, keep=0.3)
    layer(torch.zeros(1, 70))
    assert not layer.load_state_dict(linear.state_dict()).missing_keys
    assert torch.equal(layer.weight, linear.weight) and int(layer.mask_draw) == 1
    torch.testing.assert_close(torch.sigmoid(layer.mask_logits), torch.full((9, 70), 0.3))
    with pytest.raises(RuntimeError, match="weight"):
        layer.load_state_dict({"bias": linear.bias})


def test_copies_are_independent(linear, x):
    layer = MaskedLinear.from_linear(linear, 0.5)
    layer(x).sum().backward()
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert clone.stream == layer.stream and int(clone.mask_draw) == 1
        assert torch.equal(
            clone(x),
            sp.functional.masked_linear(
                x, layer.weight, layer.mask_logits, layer.bias, seed=0, draw=1, stream=layer.stream
            ),
        )
    assert int(layer.mask_draw) == 1


def test_repr(linear):
    layer = MaskedLinear.from_linear(linear, 0.25, estimator="concrete")
    assert repr(layer) == "MaskedLinear(in_features=70, out_features=9, bias=True, keep=0.25, estimator=concrete)"


def test_checkpointing_repeats_the_draw(linear, x):
    def gradients(run):
        layer = MaskedLinear.from_linear(copy.deepcopy(linear), 0.5)
        for _ in range(2):
            run(layer, x).square().sum().backward()
        assert int(layer.mask_draw) == 2
        return layer.mask_logits.grad, layer.weight.grad

    plain = gradients(lambda layer, x: layer(x))
    for reentrant, inputs in ((False, x), (True, x.clone().requires_grad_())):
        again = gradients(lambda layer, x, i=inputs, r=reentrant: checkpoint(layer, i, use_reentrant=r))
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_forward_keeps_its_draw_whatever_runs_before_its_backward(linear, x, use_reentrant):
    x = x.clone().requires_grad_()
    layer, plain = (MaskedLinear.from_linear(copy.deepcopy(linear), 0.5) for _ in range(2))

    def run(checkpointed):
        return checkpoint(layer, x, use_reentrant=use_reentrant) if checkpointed else plain(x)

    kept = []  # graphs whose backward was run
    for _ in range(2):
        for checkpointed in (True, False):
            run(checkpointed)  # a loss that is dropped
            student = run(checkpointed)
            with torch.no_grad():
                teacher = run(checkpointed)
            other = (layer if checkpointed else plain)(x)
            kept.append((student - teacher + other).square().sum())
            kept[-1].backward()
    for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_saved_tensor_hooks_that_are_no_checkpoint_confuse_nothing(linear, x):
    layer, plain = (MaskedLinear.from_linear(copy.deepcopy(linear), 0.5) for _ in range(2))
    for _ in range(2):
        with torch.autograd.graph.save_on_cpu():
            loss = layer(x).square().sum()
        loss.backward()
        plain(x).square().sum().backward()
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    plain(x).square().sum().backward()
    assert torch.equal(layer.mask_logits.grad, plain.mask_logits.grad)


def test_reentrant_checkpoints_of_one_layer_are_told_apart(linear, x):
    x = x.clone().requires_grad_()
    layer, plain = (MaskedLinear.from_linear(copy.deepcopy(linear), 0.5) for _ in range(2))
    for run in (lambda: checkpoint(layer, x, use_reentrant=True), lambda: plain(x)):
        first, second = run().square().sum(), run().square().sum()
        first.backward()
        (second + run().square().sum()).backward()
    torch.testing.assert_close(layer.mask_logits.grad, plain.mask_logits.grad)


@pytest.mark.parametrize(("use_reentrant", "together"), [(False, False), (False, True), (True, True)])
def test_checkpointed_forwards_that_cannot_be_told_apart_are_refused(linear, x, use_reentrant, together):
    layer = MaskedLinear.from_linear(linear, 0.5)
    x = x.clone().requires_grad_()
    if together:
        total = checkpoint(lambda x: layer(x) + layer(x), x, use_reentrant=use_reentrant).sum()
    else:
        total = sum(checkpoint(layer, x, use_reentrant=use_reentrant).sum() for _ in range(2))
    with pytest.raises(RuntimeError, match="several times"):
        total.backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_nested_checkpoints_and_a_graph_that_is_kept(linear, x, use_reentrant):
    layer, plain = (MaskedLinear.from_linear(copy.deepcopy(linear), 0.5) for _ in range(2))
    x = x.clone().requires_grad_()

    def inner(x):
        return checkpoint(layer, x, use_reentrant=use_reentrant)

    for _ in range(2):
        y, expected = checkpoint(inner, x, use_reentrant=use_reentrant).square().sum(), plain(x).square().sum()
        for keep in (True, False):
            y.backward(retain_graph=keep)
            expected.backward(retain_graph=keep)
    for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_compiled_training_samples_fresh_masks_without_recompiling(linear, x):
    eager = MaskedLinear.from_linear(copy.deepcopy(linear), 0.5)
    compiled = torch.compile(MaskedLinear.from_linear(linear, 0.5), fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        outputs = [compiled(x) for _ in range(3)]
        expected = [eager(x) for _ in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
        assert not torch.equal(outputs[0], outputs[1])
        for y, other in zip(outputs, expected, strict=True):  # backward samples the masks of its own forward again
            y.square().sum().backward()
            other.square().sum().backward()
        for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_the_draw_counter_never_wraps(linear, x):
    layer = MaskedLinear.from_linear(linear)
    layer.mask_draw.fill_(2**32 - 1)
    layer(x)
    with pytest.raises(RuntimeError, match="draw"):
        layer(x)


@pytest.mark.parametrize("keep", [0.0, 1.0, 1.5, float("nan"), torch.ones(9, 70)])
def test_certain_probabilities_are_refused(linear, keep):
    with pytest.raises(ValueError, match=r"keep.*got"):
        MaskedLinear.from_linear(linear, keep)


def test_bad_options(linear):
    with pytest.raises(ValueError, match=r"keep.*weight"):
        MaskedLinear.from_linear(linear, torch.full((70, 9), 0.5))
    with pytest.raises(ValueError, match=r"MaskedLinear: .*estimator.*'arm'"):
        MaskedLinear.from_linear(linear, estimator="arm")
    with pytest.raises(ValueError, match=r"seed.*got"):
        MaskedLinear.from_linear(linear, seed=2**64)


def test_a_prior_joins_the_forward(generator):
    """Loss and gradients equal those of a separate KL. The cached KL is used once, and only while it is valid."""
    layer = MaskedLinear(40, 6, seed=3).train()
    prior = layer.mask_logits.detach() - 0.5
    x = torch.randn(5, 40, generator=generator)

    def gradients():
        layer.mask_draw.zero_()
        loss = layer(x).square().sum() + 0.3 * layer.divergence(prior)
        return [loss.detach(), *torch.autograd.grad(loss, [layer.weight, layer.mask_logits, layer.bias])]

    apart = gradients()
    layer.prior_logits = prior
    with mock.patch.object(functional, "bernoulli_kl", side_effect=AssertionError("formed apart")):
        together = gradients()
    for got, value in zip(together, apart, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-5)

    layer(x)
    first = layer.divergence(prior)
    assert first.grad_fn is not layer.divergence(prior).grad_fn  # the second is computed again
    layer(x)
    with torch.no_grad():
        layer.mask_logits += 1
    assert layer.divergence(prior) > first + 1  # not that of the old logits
    layer(x)
    assert layer.divergence(prior - 1) > first + 1  # not that from another prior
    layer(x)
    assert copy.deepcopy(layer)._formed is None
    assert "prior_logits" not in layer.state_dict()
