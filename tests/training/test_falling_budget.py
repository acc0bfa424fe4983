"""The budget that falls by a cubic: its path, its starts, resumption, patterns, and the defaults that stay."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

import stochprune as sp
from stochprune.masks.probabilities import expected_kept
from stochprune.nn import masked_layers, sampling
from stochprune.training import FinetuneConfig, LoopOptions, StuckMaskWarning, WeightConfig, finetune
from stochprune.training.methods import MaskFinetuningConfig
from stochprune.training.starts import start_masks

pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")
CUBIC = FinetuneConfig(
    epochs=4, logit_lr=0.5, weight_lr=0.02, budget_schedule="cubic", ramp=0.75, sparsity=0.8, checkpoint_every=3
)


def logits_of(model):
    return [layer.mask_logits for layer in masked_layers(model).values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("ramp, steps", [(0.75, 12), (1.0, 16), (0.3, 5)])
def test_sum_of_q_follows_the_cubic_and_then_stays(masked, loader, recorder, ramp, steps):
    model = masked()
    start, keep = expected_kept(logits_of(model)).item(), 0.2 * 90
    watch = recorder(lambda: expected_kept(logits_of(model)).item())
    result = finetune(model, loader, FinetuneConfig(**{**vars(CUBIC), "ramp": ramp}), callbacks=[watch])
    path = [keep + (start - keep) * (1 - min(1, t / steps)) ** 3 for t in range(1, 17)]
    assert watch.seen == pytest.approx(path, rel=2e-6)
    assert result.history[-1]["mean_keep"] == pytest.approx(0.2, rel=2e-6)


def test_sharpening_multiplies_the_logits_once_when_the_budget_has_fallen(masked, loader, recorder):
    seen = {}
    for factor in (1.0, 4.0):
        model = masked()
        watch = recorder(lambda model=model: torch.cat([tensor.detach().flatten() for tensor in logits_of(model)]))
        finetune(model, loader, dataclasses.replace(CUBIC, sharpen=factor), callbacks=[watch])
        seen[factor] = watch.seen
    assert all(torch.equal(a, b) for a, b in zip(seen[1.0][:11], seen[4.0][:11], strict=True))
    shifts = seen[4.0][11] - 4 * seen[1.0][11]
    torch.testing.assert_close(shifts, shifts[:1].expand(90), rtol=0, atol=1e-4)
    assert [float(logits.sigmoid().sum()) for logits in seen[4.0][11:]] == pytest.approx([18.0] * 5, rel=1e-5)
    assert (seen[4.0][15].max() - seen[4.0][15].min()) > 2 * (seen[1.0][15].max() - seen[1.0][15].min())


@pytest.mark.parametrize("stopped_at", [11, 12, 13])
def test_a_resumed_run_is_sharpened_once(masked, loader, recorder, stop, tmp_path, stopped_at):
    config = dataclasses.replace(CUBIC, sharpen=4.0)
    whole, part, again = masked(), masked(), masked()
    finetune(whole, loader, config)
    with pytest.raises(stop):
        finetune(part, loader, config, out=tmp_path, callbacks=[recorder(stop=stopped_at)])
    finetune(again, loader, config, out=tmp_path)
    assert same(whole, again)


def test_sharpening_needs_a_budget_that_falls(masked, loader):
    with pytest.raises(ValueError, match=r"sharpen .*constant.* 4\.0"):
        finetune(masked(), loader, FinetuneConfig(sharpen=4.0))


def test_the_penalty_follows_it_too(masked, loader):
    model = masked()
    config = FinetuneConfig(**{**vars(CUBIC), "epochs": 12, "budget": "penalty", "penalty_strength": 1000.0})
    assert finetune(model, loader, config).history[-1]["mean_keep"] == pytest.approx(0.2, rel=0.2)


def test_it_is_a_plain_loop(masked, loader):
    """The masks of the run's steps, Adam, and the shift found by bisection."""
    by_hand, model = masked(), masked()
    finetune(model, loader, CUBIC)
    logits = logits_of(by_hand)
    weights = [p for p in by_hand.parameters() if not any(p is tensor for tensor in logits)]
    optimizer = torch.optim.Adam([{"params": logits, "lr": 0.5}, {"params": weights, "lr": 0.02}])
    for layer in masked_layers(by_hand).values():
        layer.mask_seed.fill_(0)
    start, step = expected_kept(logits).item(), 0
    with sampling(by_hand):
        for epoch in range(4):
            loader.set_epoch(epoch)
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(by_hand(x), y).backward()
                optimizer.step()
                step += 1
                target = 18 + (start - 18) * (1 - min(1, step / 12)) ** 3
                low, high = -50.0, 50.0
                for _ in range(80):
                    middle = (low + high) / 2
                    kept = sum(torch.sigmoid(tensor.double() + middle).sum().item() for tensor in logits)
                    low, high = (low, middle) if kept > target else (middle, high)
                with torch.no_grad():
                    for tensor in logits:
                        tensor.add_(middle)
    for a, b in zip(by_hand.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("pattern, stopped_at", [(None, 1), (None, 3), (None, 7), (None, 12), ("rows", 4), ("1:2", 4)])
def test_resume_is_bit_for_bit(dense, loader, recorder, stop, tmp_path, pattern, stopped_at):
    def start():
        return sp.convert(copy.deepcopy(dense), pattern=pattern, exclude="2.*", seed=5)

    whole, resumed, watch = start(), start(), recorder()
    options = LoopOptions(accumulate=2, clip_norm=1.0)
    config = FinetuneConfig(**{**vars(CUBIC), "epochs": 8})
    expected = finetune(whole, loader, config, options=options)
    with pytest.raises(stop):
        finetune(start(), loader, config, out=tmp_path, options=options, callbacks=[recorder(stop=stopped_at)])
    result = finetune(resumed, loader, config, out=tmp_path, options=options, callbacks=[watch])
    assert same(resumed, whole) and result.history == expected.history
    assert len(watch.seen) == 16 - stopped_at // 3 * 3
    assert expected.history[-1]["mean_keep"] == pytest.approx(0.2, rel=2e-6)


@pytest.mark.parametrize("cut, budget", [("layer", "global"), ("row", "global"), ("global", "layer")])
def test_a_budget_of_each_layer_starts_from_scores_of_the_layer(dense, cut, budget):
    scores = sp.scores.magnitude(dense)
    found = start_masks(scores, 0.5, FinetuneConfig(start="score", budget_scope=budget), scope=cut)
    for name, score in scores.items():
        assert torch.equal(found[name], sp.masks.keep_probabilities({name: score})[name])


@pytest.mark.parametrize("start", ["mask", "dense", "score"])
def test_starts(dense, start):
    scores = sp.scores.magnitude(dense)
    model = sp.convert(dense, start_masks(scores, 0.8, FinetuneConfig(start=start)))
    q = {name: torch.sigmoid(layer.mask_logits.detach().double()) for name, layer in masked_layers(model).items()}
    if start == "score":
        flat = torch.cat([value.flatten() for value in scores.values()])
        for name, score in scores.items():
            shift = ((score - flat.median()) / flat.std(correction=0)).clamp(-3, 3)
            assert torch.allclose(q[name], torch.sigmoid(math.log(19) + shift).double(), atol=1e-6)
    else:
        kept = sp.masks.from_scores(scores, 0.8 if start == "mask" else 0.0)
        for name, mask in kept.items():
            assert torch.allclose(q[name], torch.where(mask, 0.95, 0.05).double())


@pytest.mark.parametrize(
    "start, pattern, mode",
    [
        ("mask", None, "frozen"),
        ("dense", None, "joint"),
        ("score", None, "joint"),
        ("score", "rows", "joint"),
        ("dense", "1:2", "joint"),
    ],
)
def test_prune_finetune_reaches_the_sparsity_before_the_cut(dense, loader, recorder, start, pattern, mode):
    config = FinetuneConfig(**{**vars(CUBIC), "start": start, "sparsity": 0.0, "mode": mode})
    last = {}

    class Watch:
        def on_epoch(self, state):
            if state.phase == "mask":
                last.update(state.history[-1])

    weights = WeightConfig(1, 0.02)
    sp.prune_finetune(
        dense, loader, 0.5, pattern=pattern, exclude="2.*", config=config, weights=weights, callbacks=[Watch()]
    )
    assert last["mean_keep"] == pytest.approx(0.5, rel=2e-6) and last["budget_error"] == pytest.approx(0, abs=2e-6)
    assert int(dense[0].weight.count_nonzero()) == 30


@pytest.mark.parametrize("start", ["mask", "dense", "score"])
def test_filters_go_with_the_falling_budget(dense, problem, start):
    """Budgets of convolutions with one mask for each filter count filters; what is cut can be removed."""
    layers = (torch.nn.utils.skip_init(torch.nn.Conv1d, 1, 10, 3), torch.nn.utils.skip_init(torch.nn.Linear, 40, 3))
    for i, parameter in enumerate(p for layer in layers for p in layer.parameters()):
        parameter.detach().copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    model = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 6)), layers[0], torch.nn.ReLU(), torch.nn.Flatten(), layers[1]
    )
    batches = sp.data.Batches(*problem, batch_size=16, seed=3)
    kept = []

    class Watch:
        def on_epoch(self, state):
            if state.phase == "mask":
                kept.append(state.history[-1]["mean_keep"])

    config = FinetuneConfig(**{**vars(CUBIC), "start": start, "sparsity": 0.0})
    options = {"pattern": "rows", "exclude": torch.nn.Linear, "config": config, "weights": WeightConfig(1, 0.02)}
    sp.prune_finetune(model, batches, 0.6, callbacks=[Watch()], **options)
    assert kept[-1] == pytest.approx(0.4, rel=2e-6) and kept[0] > 0.4
    filters = model[1].weight.ne(0)
    assert filters.flatten(1).any(1).equal(filters.flatten(1).all(1)) and int(filters.flatten(1).any(1).sum()) == 4
    assert sp.shrink(model, problem[0][:2])[1].out_channels == 4


@pytest.mark.parametrize("killed_at", [2, 8, 17])
def test_prune_finetune_resumes(dense, loader, killer, stop, tmp_path, killed_at):
    def run(model, **where):
        config = FinetuneConfig(**{**vars(CUBIC), "start": "score"})
        weights = WeightConfig(2, 0.02, checkpoint_every=2)
        return sp.prune_finetune(model, loader, 0.6, config=config, weights=weights, **where)

    part, again = copy.deepcopy(dense), copy.deepcopy(dense)
    with pytest.raises(stop):
        run(part, out=tmp_path, callbacks=[killer(killed_at)])
    assert same(run(again, out=tmp_path), run(dense))


@pytest.mark.parametrize("start", ["mask", "dense", "score"])
def test_only_the_score_s_mask_must_keep_a_weight_of_every_layer_at_the_start(dense, start):
    with torch.no_grad():
        dense[2].weight.mul_(1e-3)
    scores, config = sp.scores.magnitude(dense), FinetuneConfig(start=start)
    if start == "mask":
        with pytest.raises(ValueError, match=r"2\.weight"):
            start_masks(scores, 0.8, config)
    else:
        assert start_masks(scores, 0.8, config).keys() == scores.keys()
    with pytest.raises(ValueError, match=r"2\.weight"):
        start_masks(scores, 0.99, config, scope="layer")


def test_frozen_logits_do_not_count(masked, loader):
    model = masked()
    first, *others = logits_of(model)
    first.requires_grad_(False)
    before = first.clone()
    finetune(model, loader, CUBIC)
    assert torch.equal(first, before)
    count = sum(tensor.numel() for tensor in others)
    assert expected_kept(others).item() == pytest.approx(0.2 * count, rel=2e-6)


def test_a_constant_budget_ignores_the_other_fields(masked, loader):
    a, b = masked(), masked()
    finetune(a, loader, FinetuneConfig(epochs=2))
    finetune(b, loader, FinetuneConfig(epochs=2, ramp=0.1, start="dense"))
    assert same(a, b)


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: FinetuneConfig(budget_schedule="cubic", budget="kl"), "budget_schedule.*kl"),
        (lambda: FinetuneConfig(sparsity=1.0), r"sparsity.*1\.0"),
        (lambda: FinetuneConfig(sparsity=0.9), r"sparsity 0\.9.*budget_schedule='cubic'"),
        (lambda: FinetuneConfig(ramp=0.0), r"ramp.*0\.0"),
        (lambda: FinetuneConfig(start="x"), "start.*'x'"),
    ],
)
def test_bad_configurations(make, named):
    with pytest.raises(ValueError, match=named):
        make()


class OwnConfig(FinetuneConfig):
    """A user's configuration; that of a method that cuts may have a sparsity."""


class OwnCutConfig(MaskFinetuningConfig):
    pass


def test_checks_hold_for_subclasses():
    with pytest.raises(ValueError, match=r"OwnConfig: sparsity .*0\.9"):
        OwnConfig(sparsity=0.9)
    with pytest.raises(ValueError, match=r"OwnConfig: budget_schedule cubic .*kl"):
        OwnConfig(budget_schedule="cubic", budget="kl")
    assert OwnCutConfig(sparsity=0.9).sparsity == 0.9


def test_a_cubic_budget_needs_a_sparsity_and_a_length(masked, loader):
    with pytest.raises(ValueError, match=r"sparsity.*got 0"):
        finetune(masked(), loader, FinetuneConfig(budget_schedule="cubic"))
    with pytest.raises(ValueError, match="train_loader"):
        finetune(masked(), iter(loader), CUBIC)


def test_the_warning_of_stuck_masks_still_comes(masked, loader):
    config = FinetuneConfig(**{**vars(CUBIC), "logit_lr": 1e-9, "sparsity": 0.55, "ramp": 0.05})
    with pytest.warns(StuckMaskWarning):
        finetune(masked(), loader, config)


@pytest.mark.parametrize("kind, exact", [("shift", 2e-6), ("penalty", 0.2)])
def test_scope_layer_holds_each_layer(masked, loader, kind, exact):
    model, given = masked(), {"budget": kind, "budget_scope": "layer", "penalty_strength": 1000.0, "epochs": 12}
    finetune(model, loader, FinetuneConfig(**{**vars(CUBIC), **given}))
    assert [expected_kept([tensor]).item() / tensor.numel() for tensor in logits_of(model)] == pytest.approx(
        [0.2] * 2, rel=exact
    )


def test_budgets_of_layers_follow_their_own_cubics_and_resume(masked):
    model = masked()
    with torch.no_grad():
        logits_of(model)[0].fill_(1.0)
    starts = [torch.sigmoid(tensor.double()).mean().item() for tensor in logits_of(model)]
    budget = sp.Budget(model, 0.8, schedule="cubic", steps=4, scope="layer")
    resumed = sp.Budget(model, 0.8, schedule="cubic", steps=4, scope="layer")
    budget.step()
    state = budget.state_dict()
    resumed.load_state_dict(state)
    for each in (budget, resumed):
        each.step()
        for start, tensor in zip(starts, logits_of(model), strict=True):
            assert torch.sigmoid(tensor.double()).mean().item() == pytest.approx(0.2 + (start - 0.2) / 8, rel=1e-6)
    total = sum(tensor.numel() for tensor in logits_of(model))
    assert budget.target == pytest.approx((1 - budget.sparsity_at(2)) * total)
    with pytest.raises(ValueError, match="another scope"):
        sp.Budget(model, 0.8, schedule="cubic", steps=4).load_state_dict(state)
    with pytest.raises(ValueError, match=r"scope.*row"):
        sp.Budget(model, 0.8, scope="row")


def test_states_from_before_the_scope_load(masked):
    model = masked()
    budget = sp.Budget(model, 0.8, schedule="cubic", steps=4)
    (target,), (first,) = (budget.state_dict()[name] for name in ("target", "first_sparsity"))
    budget.load_state_dict({**budget.state_dict(), "made": 2, "target": target / 2, "first_sparsity": first})
    assert budget.made == 2 and budget.target == target / 2 and budget.sparsity_at(0) == pytest.approx(first)


@pytest.mark.parametrize("scope", ["layer", "row"])
def test_cuts_of_layers_have_budgets_of_layers(dense, loader, scope):
    """With one budget for all layers, the cut of this layer would prune weights whose probability is near 1."""
    model, config = copy.deepcopy(dense), FinetuneConfig(**{**vars(CUBIC), "start": "score"})
    each = []

    class Watch:
        def on_epoch(self, state):
            if state.phase == "mask":
                each[:] = [torch.sigmoid(tensor).mean().item() for tensor in logits_of(state.model)]

    sp.prune_finetune(model, loader, 0.5, scope=scope, config=config, weights=WeightConfig(1), callbacks=[Watch()])
    assert each == pytest.approx([0.5, 0.5], rel=1e-5)
