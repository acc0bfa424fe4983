"""The pruning methods: one interface, resumption, and each against a few lines of plain torch."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import stochprune as sp
from stochprune.nn import masked_layers, sampling
from stochprune.training import (
    ContinuousSparsificationConfig,
    FrozenProbabilitiesConfig,
    GradualMagnitudeConfig,
    HardConcreteConfig,
    LoopOptions,
    MovementConfig,
    RigLConfig,
    WeightConfig,
    prune,
)
from stochprune.training.methods import METHODS, make_config
from tests.training.by_hand import WEIGHTS, batches_of, by_name, close, largest, masked_steps

pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")
OWN = {
    "iterative_magnitude": {"cycles": 2},
    "gradual_magnitude": {"every": 2},
    "mask_finetuning": {"budget_schedule": "cubic", "logit_lr": 0.5},
    "rigl": {"every": 3},
    "admm": {"every": 3},
    "soft_threshold": {"threshold": 0.05},
    "maskllm": {"sparsity": 0.5, "pattern": "1:2"},
}
ANY_SPARSITY = [name for name in METHODS if name != "maskllm"]  # whose sparsity is that of a pattern
NO_BUDGET = {"mask_finetuning": {"budget_schedule": "constant"}}
FREEZE = ("edge_popup", "supermask")
"""The methods that train no weights."""


def config_of(name, **values):
    return make_config(name, {"epochs": 4, "sparsity": 0.8, "checkpoint_every": 3, **OWN.get(name, {}), **values})


@pytest.mark.parametrize("name", ANY_SPARSITY)
def test_every_method_prunes_to_the_sparsity(dense, loader, recorder, name):
    watch, before = recorder(), copy.deepcopy(dense)
    found = prune(dense, loader, config_of(name), callbacks=[watch])
    assert len(watch.seen) == 16
    assert [type(module) for module in found.model] == [torch.nn.Linear, torch.nn.ReLU, torch.nn.Linear]
    assert list(found.masks) == list(WEIGHTS)
    assert sum(int(mask.sum()) for mask in found.masks.values()) == 18
    for key, mask in found.masks.items():
        assert mask.dtype == torch.bool
        assert not bool(found.model.get_parameter(key)[~mask].any())
    assert found.model.state_dict().keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(parameter.requires_grad for parameter in found.model.parameters())
    for key, value in before.named_parameters():
        kept = found.masks.get(key, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(found.model.get_parameter(key)[kept], value[kept]) == (name in FREEZE), key


@pytest.mark.parametrize("name", ANY_SPARSITY)
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(dense, loader, name, training):
    assert prune(dense.train(training), loader, config_of(name)).model.training is training


@pytest.mark.parametrize("name", ANY_SPARSITY)
@pytest.mark.parametrize("stopped_at", [2, 7, 13])
def test_resumed_is_bit_for_bit_the_uninterrupted(dense, loader, killer, stop, tmp_path, name, stopped_at):
    part, again = copy.deepcopy(dense), copy.deepcopy(dense)
    whole = prune(dense, loader, config_of(name))
    with pytest.raises(stop):
        prune(part, loader, config_of(name), folder=tmp_path, callbacks=[killer(stopped_at)])
    resumed = prune(again, loader, config_of(name), folder=tmp_path)
    assert all(torch.equal(whole.masks[key], resumed.masks[key]) for key in WEIGHTS)
    assert whole.history == resumed.history
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", METHODS)
def test_a_training_that_fails_leaves_the_model_s_own_layers(dense, loader, recorder, stop, name):
    layers, parameters = [*dense], [*dense.parameters()]
    with pytest.raises(stop):
        prune(dense, loader, config_of(name), callbacks=[recorder(stop=6)])
    assert [*dense] == layers and all(a is b for a, b in zip(dense.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)
    assert dense.state_dict().keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_a_supermask_with_a_loss_that_is_nan_can_be_run_again(dense, loader):
    loss = lambda y, target: F.cross_entropy(y, target) * float("nan")  # noqa: E731
    expected = prune(copy.deepcopy(dense), loader, config_of("supermask"))
    with pytest.raises(FloatingPointError):
        prune(dense, loader, config_of("supermask"), loss_fn=loss)
    found = prune(dense, loader, config_of("supermask"))
    assert all(torch.equal(found.masks[key], expected.masks[key]) for key in WEIGHTS)


def test_gradual_magnitude_by_hand(dense, loader):
    """Zhu and Gupta, equation 1: after steps 4, 8 and 10 = T the smallest weights that are left become 0."""
    params = by_name(dense)
    masks = {name: torch.ones_like(params[name]) for name in WEIGHTS}
    for step in masked_steps(dense, loader, params, masks):
        if step in (4, 8, 10):
            kept = 90 - round(90 * 0.8 * (1 - (1 - step / 10) ** 3))
            masks |= largest({name: (params[name].detach() * masks[name]).abs() for name in WEIGHTS}, kept)
    config = GradualMagnitudeConfig(epochs=4, lr=0.02, sparsity=0.8, ramp=0.6, every=4)
    found = prune(dense, loader, config)
    assert all(torch.equal(found.masks[name], masks[name]) for name in WEIGHTS)
    close(found.model, params, masks)
    assert [entry["sparsity"] for entry in found.history] == pytest.approx([0.6222, 0.8, 0.8, 0.8], abs=0.2)
    assert found.history[-1]["sparsity"] == pytest.approx(0.8)


def test_rigl_by_hand(dense, loader):
    """Algorithm 1 with SGD: every third step before T = 12 exchanges weights and is no step of the optimiser."""
    params = by_name(dense)
    masks = largest({name: params[name].detach().abs() for name in WEIGHTS}, 45)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    exchanged = 0
    for step, (x, y) in enumerate(batches_of(loader, 4), 1):
        with torch.no_grad():
            for name in WEIGHTS:
                params[name] *= masks[name]
        loss = F.cross_entropy(functional_call(dense, params, (x,)), y)
        grads = dict(zip(params, torch.autograd.grad(loss, params.values()), strict=True))
        if step % 3 == 0 and step < 12:
            for name in WEIGHTS:
                count = round(0.4 / 2 * (1 + math.cos(math.pi * step / 12)) * kept[name])
                w, g, on = params[name].detach().flatten(), grads[name].flatten(), masks[name].flatten().tolist()
                drop = sorted((i for i in range(len(on)) if on[i]), key=lambda i: abs(w[i]))[:count]
                left = {i for i in range(len(on)) if on[i]} - set(drop)
                grow = sorted((i for i in range(len(on)) if i not in left), key=lambda i: -abs(g[i]))[:count]
                new = torch.tensor([i in left or i in grow for i in range(len(on))]).view_as(masks[name])
                exchanged += int((new & ~masks[name]).sum())
                masks[name] = new
            continue
        with torch.no_grad():
            for name, value in params.items():
                value -= 0.1 * grads[name] * masks.get(name, 1)
    config = RigLConfig(epochs=4, lr=0.1, sparsity=0.5, start="magnitude", every=3, stop=0.75, fraction=0.4)
    found = prune(dense, loader, config, options=LoopOptions(optimizer=torch.optim.SGD))
    assert exchanged > 3 and {name: int(mask.sum()) for name, mask in found.masks.items()} == kept
    assert all(torch.equal(found.masks[name], masks[name]) for name in WEIGHTS)
    close(found.model, params, masks)


def test_rigl_starts_at_random_with_its_densities(dense, loader):
    found = prune(dense, loader, RigLConfig(epochs=1, sparsity=0.5, every=2))
    densities = sp.scores.erk_densities(dense, 0.5)
    for name, mask in found.masks.items():
        assert int(mask.sum()) == round(densities[name] * mask.numel())


def test_new_weights_of_rigl_have_a_new_state(dense, loader, recorder):
    """Adam's moments of a weight that has just grown are 0."""
    masks, moments = [], []

    class Look:
        def on_step(self, state):
            masks.append(state.constraint.masks)
            moments.append({n: state.optimizer.state[state.model.get_parameter(n)]["exp_avg"].clone() for n in WEIGHTS})

    prune(dense, loader, RigLConfig(epochs=2, sparsity=0.5, start="magnitude", every=3), callbacks=[Look()])
    for name in WEIGHTS:
        grown = masks[2][name] & ~masks[1][name]
        assert not bool(moments[2][name][grown].any())
    assert any(bool((masks[2][name] & ~masks[1][name]).any()) for name in WEIGHTS)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_movement_by_hand(dense, loader, kind):
    """Equations 2 and 3: w' = w M(S), the score's gradient is dL/dw' w, the weight's dL/dw' M."""
    params = by_name(dense)
    scores = {name: torch.zeros_like(params[name]).requires_grad_() for name in WEIGHTS}
    optimizer = torch.optim.SGD([{"params": params.values()}, {"params": scores.values(), "lr": 0.5}], lr=0.1)
    masks = {name: torch.ones_like(params[name]) for name in WEIGHTS}
    for step, (x, y) in enumerate(batches_of(loader, 4), 1):
        progress = min(1.0, (step - 1) / 8)
        weights = {n: (p.detach() * masks[n] if n in masks else p.detach()).requires_grad_() for n, p in params.items()}
        loss = F.cross_entropy(functional_call(dense, weights, (x,)), y)
        grads = dict(zip(weights, torch.autograd.grad(loss, weights.values()), strict=True))
        for name, value in params.items():
            value.grad = grads[name] * masks.get(name, 1)
        for name, score in scores.items():
            price = 0.0 if kind == "hard" else 3.0 * (1 - (1 - progress) ** 3) / 90
            q = torch.sigmoid(score.detach())
            score.grad = grads[name] * params[name].detach() + price * q * (1 - q)
        optimizer.step()
        if kind == "hard":
            kept = 90 - round(90 * 0.8 * (1 - (1 - min(1.0, step / 8)) ** 3))
            masks = {name: mask.float() for name, mask in largest(scores, kept).items()}
        else:
            masks = {name: (torch.sigmoid(score.detach()) > 0.49).float() for name, score in scores.items()}
    final = largest({name: score.detach() for name, score in scores.items()}, 18)
    config = MovementConfig(
        epochs=4, lr=0.1, sparsity=0.8, kind=kind, ramp=0.5, score_lr=0.5, threshold=0.49, price=3.0
    )
    found = prune(dense, loader, config, options=LoopOptions(optimizer=torch.optim.SGD))
    assert all(torch.equal(found.masks[name], final[name]) for name in WEIGHTS)
    close(found.model, params, final)
    own = 1 - sum(mask.sum().item() for mask in masks.values()) / 90
    assert found.history[-1]["sparsity"] == pytest.approx(own) and own > 0.1


def test_continuous_sparsification_by_hand(dense, loader):
    """The weight is w sigmoid(beta s); beta is 50^(t / 15) in step t = 0 .. 15; the loss has the price of the masks."""
    params = by_name(dense)
    scores = {name: torch.full_like(params[name], 0.05).requires_grad_() for name in WEIGHTS}
    optimizer = torch.optim.SGD([{"params": params.values()}, {"params": scores.values(), "lr": 0.5}], lr=0.1)
    for step, (x, y) in enumerate(batches_of(loader, 4)):
        beta = 50.0 ** (step / 15)
        gates = {name: torch.sigmoid(beta * score) for name, score in scores.items()}
        weights = {name: value * gates[name] if name in gates else value for name, value in params.items()}
        loss = F.cross_entropy(functional_call(dense, weights, (x,)), y) + 0.01 * sum(g.sum() for g in gates.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    final = largest({name: score.detach() for name, score in scores.items()}, 18)
    config = ContinuousSparsificationConfig(
        epochs=4, lr=0.1, sparsity=0.8, score_lr=0.5, first_score=0.05, price=0.01, beta=50.0
    )
    found = prune(dense, loader, config, options=LoopOptions(optimizer=torch.optim.SGD))
    assert all(torch.equal(found.masks[name], final[name]) for name in WEIGHTS)
    close(found.model, params, final, atol=1e-5)
    own = 1 - sum(int((score > 0).sum()) for score in scores.values()) / 90
    assert found.history[-1]["sparsity"] == pytest.approx(own)


def test_hard_concrete_by_hand(dense, loader):
    """Gates from the uniforms of the contract; the price of P(gate > 0) = sigmoid(logit - t ln(0.1 / 1.1))."""
    config = HardConcreteConfig(epochs=3, lr=0.1, sparsity=0.8, logit_lr=0.5, price=2.0, keep=0.7)
    names = sp.nn.masked_layers(sp.convert(copy.deepcopy(dense))).items()
    streams = {name: layer.stream for name, layer in names}
    params = by_name(dense)
    logits = {name: torch.full_like(params[name], math.log(0.7 / 0.3)).requires_grad_() for name in WEIGHTS}
    optimizer = torch.optim.SGD([{"params": params.values()}, {"params": logits.values(), "lr": 0.5}], lr=0.1)
    for draw, (x, y) in enumerate(batches_of(loader, 3)):
        weights, price = dict(params), 0.0
        for name, logit in logits.items():
            bits = sp.rng.uniform16(*logit.shape, seed=0, draw=draw, stream=streams[name])
            u = ((bits.to(torch.int32) % 2**15).double() + 0.5) / 2**15
            gate = torch.sigmoid((logit + torch.log((1 - u) / u)) / (2 / 3)) * 1.2 - 0.1
            weights[name] = params[name] * gate.clamp(0, 1).float()
            price = price + torch.sigmoid(logit.double() - 2 / 3 * math.log(0.1 / 1.1)).sum()
        optimizer.zero_grad()
        (F.cross_entropy(functional_call(dense, weights, (x,)), y) + 2.0 / 90 * price).backward()
        optimizer.step()
    final = largest({name: logit.detach() for name, logit in logits.items()}, 18)
    gates = {n: (torch.sigmoid(logit.detach()) * 1.2 - 0.1).clamp(0, 1) * final[n] for n, logit in logits.items()}
    found = prune(dense, loader, config, options=LoopOptions(optimizer=torch.optim.SGD))
    assert all(torch.equal(found.masks[name], final[name]) for name in WEIGHTS)
    close(found.model, params, gates, atol=1e-4)


def test_frozen_probabilities_by_hand(dense, loader):
    config = FrozenProbabilitiesConfig(epochs=2, lr=0.05, sparsity=0.5, seed=4, keep_kept=0.9, keep_pruned=0.2)
    by_hand = copy.deepcopy(dense)
    first = largest({name: by_hand.get_parameter(name).detach().abs() for name in WEIGHTS}, 45)
    by_hand = sp.convert(by_hand, first, keep_kept=0.9, keep_pruned=0.2, seed=4)
    weights = [value for name, value in by_hand.named_parameters() if not name.endswith("mask_logits")]
    optimizer = torch.optim.Adam(weights, lr=0.05)
    with sampling(by_hand):
        for x, y in batches_of(loader, 2):
            optimizer.zero_grad()
            F.cross_entropy(by_hand(x), y).backward()
            optimizer.step()
    params = {name: value for name, value in by_hand.named_parameters() if not name.endswith("mask_logits")}
    for name, layer in masked_layers(by_hand).items():
        assert torch.allclose(torch.sigmoid(layer.mask_logits), torch.where(first[name], 0.9, 0.2))
    final = largest({name: params[name].detach().abs() for name in WEIGHTS}, 45)
    found = prune(dense, loader, config)
    assert all(torch.equal(found.masks[name], final[name]) for name in WEIGHTS)
    close(found.model, params, final)
    assert any(not torch.equal(first[name], final[name]) for name in WEIGHTS)


@pytest.mark.parametrize("options", [LoopOptions(precision="bf16"), LoopOptions(accumulate=3, clip_norm=0.5)])
@pytest.mark.parametrize("name", ANY_SPARSITY)
def test_methods_take_the_options_of_the_loop(dense, loader, recorder, name, options):
    watch = recorder()
    found = prune(dense, loader, config_of(name), options=options, callbacks=[watch])
    assert len(watch.seen) == 16 // (2 if options.accumulate == 3 else 1)
    assert sum(int(mask.sum()) for mask in found.masks.values()) == 18


@pytest.mark.parametrize("name", ANY_SPARSITY)
def test_sparsity_zero_keeps_everything(dense, loader, name):
    found = prune(dense, loader, config_of(name, epochs=2, sparsity=0.0, **NO_BUDGET.get(name, {})))
    assert all(bool(mask.all()) for mask in found.masks.values())


@pytest.mark.parametrize("name", METHODS)
def test_bad_input_is_named(loader, name):
    with pytest.raises(ValueError, match=rf"{name}.*'magic'.*sparsity"):
        config_of(name, magic=1)
    for sparsity in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"sparsity.*got {sparsity}"):
            config_of(name, sparsity=sparsity)
    with pytest.raises(ValueError, match="Sequential"):
        prune(torch.nn.Sequential(torch.nn.LayerNorm(6)), loader, config_of(name))


def test_unknown_names_and_configurations_are_named(dense, loader):
    with pytest.raises(ValueError, match=r"'magic'.*gradual_magnitude"):
        make_config("magic", {})
    with pytest.raises(ValueError, match=r"rigl.*'ramp'.*fraction"):
        make_config("rigl", {"ramp": 0.5})
    with pytest.raises(ValueError, match=r"got WeightConfig"):
        prune(dense, loader, WeightConfig())
    with pytest.raises(ValueError, match=r"cycles.*got 3 and 10"):
        make_config("iterative_magnitude", {"cycles": 3})
    with pytest.raises(ValueError, match="train_loader"):
        prune(dense, iter(loader), GradualMagnitudeConfig())


def test_every_configuration_has_the_common_fields():
    for kind, _ in METHODS.values():
        assert {"epochs", "sparsity", "seed", "checkpoint_every"} <= {field.name for field in dataclasses.fields(kind)}


def test_the_schedule_of_mask_finetuning_is_that_of_the_weights(dense, loader):
    rates = []

    class Look:
        def on_step(self, state):
            rates.append({group["name"]: group["lr"] for group in state.optimizer.param_groups})

    prune(dense, loader, config_of("mask_finetuning", weight_lr=0.01, schedule="linear"), callbacks=[Look()])
    assert {rate["logits"] for rate in rates} == {0.5}
    assert [rate["weights"] for rate in rates] == pytest.approx([0.01 * (1 - (step + 1) / 16) for step in range(16)])
