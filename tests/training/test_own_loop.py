"""Loops of one's own: the groups of parameters, the budget and its schedules, the warning, the loss of the masks."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F

import stochprune as sp
from stochprune.masks.probabilities import expected_kept
from stochprune.nn import masked_layers
from stochprune.training import FinetuneConfig, Sparsity, StuckMaskWarning, finetune


def logits_of(model):
    return [layer.mask_logits for layer in masked_layers(model).values()]


def train(model, loader, *, steps, logit_lr=0.1, budget=None, optimizer=torch.optim.Adam):
    """A plain loop of ``steps`` steps; returns the sum of q after each."""
    step = optimizer(sp.parameter_groups(model, 1e-3, logit_lr=logit_lr))
    kept = []
    while len(kept) < steps:
        for x, y in loader:
            loss = F.cross_entropy(model(x), y) + (budget.penalty() if budget else 0)
            step.zero_grad()
            loss.backward()
            step.step()
            if budget:
                budget.step()
            kept.append(expected_kept(logits_of(model)).item())
    return kept


def test_groups_have_every_trained_parameter_once_and_logits_never_decay(masked):
    model = masked()
    model[0].bias.requires_grad_(False)
    groups = sp.parameter_groups(model, 1e-3, logit_lr=0.2, weight_decay=0.1)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("logits", 0.2, 0.0),
        ("weights", 1e-3, 0.1),
    ]
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(given) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    torch.optim.AdamW(groups)


def test_groups_leave_the_decay_of_weights_to_the_optimiser_and_drop_empty_ones(masked):
    model = masked()
    optimizer = torch.optim.AdamW(sp.parameter_groups(model, 1e-3), weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.3]
    for logits in logits_of(model):
        logits.requires_grad_(False)
    assert [group["name"] for group in sp.parameter_groups(model, 1e-3)] == ["weights"]
    with pytest.raises(ValueError, match="requires gradients"):
        sp.parameter_groups(model.requires_grad_(False), 1e-3)


def test_groups_have_tied_weights_and_masks_once():
    first, second = (torch.nn.utils.skip_init(torch.nn.Linear, 3, 3) for _ in range(2))
    second.weight = first.weight
    model = sp.convert(torch.nn.Sequential(first, second))
    assert [len(group["params"]) for group in sp.parameter_groups(model, 1e-3)] == [1, 3]


@pytest.mark.parametrize(
    "values, named",
    [({"lr": 0.0}, "lr.*0.0"), ({"logit_lr": -1.0}, "logit_lr.*-1.0"), ({"weight_decay": -0.1}, "weight_decay.*-0.1")],
)
def test_groups_refuse_impossible_rates(masked, values, named):
    with pytest.raises(ValueError, match=named):
        sp.parameter_groups(masked(), **{"lr": 1e-3, **values})


def test_a_plain_loop_is_what_finetune_does(masked, loader):
    """The same optimiser, budget and batches give the same bits."""
    ours, theirs = masked(), masked()
    finetune(theirs, loader, FinetuneConfig(epochs=1, logit_lr=0.1))
    for layer in masked_layers(ours).values():
        layer.mask_seed.zero_()
    train(ours, loader, steps=4, budget=sp.Budget(ours))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_a_budget_the_sparsity_drifts_and_with_one_it_does_not(masked, loader):
    drifting, held = masked(), masked()
    start = expected_kept(logits_of(held)).item()
    assert train(drifting, loader, steps=40, logit_lr=0.3)[-1] > 1.05 * start
    kept = train(held, loader, steps=40, logit_lr=0.3, budget=sp.Budget(held))
    assert kept == pytest.approx([start] * 40, rel=1e-6)


@pytest.mark.parametrize("kind", ["shift", "penalty"])
def test_a_sparsity_is_reached(masked, loader, kind):
    model = masked()
    budget = sp.Budget(model, 0.8, kind=kind, **({"strength": 1000.0} if kind == "penalty" else {}))
    kept = train(model, loader, steps=80, budget=budget)
    assert kept[-1] / 90 == pytest.approx(0.2, rel=1e-5 if kind == "shift" else 0.1)


def test_the_cubic_goes_from_dense_to_the_target(dense, loader):
    model = sp.convert(dense)
    budget = sp.Budget(model, 0.9, schedule="cubic", steps=10, begin=2)
    kept = train(model, loader, steps=16, budget=budget)
    curve = Sparsity(0.05, 0.9, 10, begin=2)
    assert kept == pytest.approx([90 * (1 - curve.value(step)) for step in range(1, 17)], rel=1e-4)
    assert kept[1] == pytest.approx(90 * 0.95, rel=1e-6) and kept[-1] == pytest.approx(90 * 0.1, rel=1e-6)


def test_frozen_logits_neither_change_nor_count(masked, loader):
    model = masked()
    first, second = logits_of(model)
    first.requires_grad_(False)
    before = first.clone()
    budget = sp.Budget(model, 0.7)
    train(model, loader, steps=8, budget=budget)
    assert torch.equal(first, before)
    assert expected_kept([second]).item() == pytest.approx(0.3 * second.numel(), rel=1e-6)


@pytest.mark.parametrize("kind", ["shift", "penalty", "kl", "none"])
def test_a_resumed_loop_continues_bit_for_bit(masked, loader, kind):
    options = {"sparsity": 0.8, "schedule": "cubic", "steps": 6} if kind in ("shift", "penalty") else {}

    def start():
        model = masked()
        return model, sp.Budget(model, kind=kind, **options)

    whole, budget = start()
    train(whole, loader, steps=8, budget=budget, optimizer=torch.optim.SGD)
    part, budget = start()
    train(part, loader, steps=4, budget=budget, optimizer=torch.optim.SGD)
    stored = copy.deepcopy((part.state_dict(), budget.state_dict()))
    numbers = budget.end_epoch()
    again = masked()
    again.load_state_dict(stored[0])
    budget = sp.Budget(again, kind=kind, **options)
    budget.load_state_dict(stored[1])
    assert budget.end_epoch() == numbers
    train(again, loader, steps=4, budget=budget, optimizer=torch.optim.SGD)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_the_masks_at_the_start_take_one_bit_a_weight(masked):
    model = masked()
    budget, logits = sp.Budget(model), [layer.mask_logits for layer in sp.nn.masked_layers(model).values()]
    stored, kept = budget.state_dict(), [tensor.detach() >= 0 for tensor in logits]
    assert [tensor.numel() for tensor in stored["kept_at_start"]] == [-(-tensor.numel() // 8) for tensor in logits]
    with torch.no_grad():
        logits[0].view(-1)[-3:].neg_()
    assert budget.flips.count() == 3
    budget.load_state_dict({**stored, "kept_at_start": kept})  # a state of an earlier version
    assert budget.flips.count() == 3


def test_a_state_of_another_budget_is_refused(masked):
    budget = sp.Budget(masked())
    for broken in ({}, {**budget.state_dict(), "kept_at_start": []}, sp.Budget(masked(), kind="kl").state_dict()):
        with pytest.raises(ValueError, match="load_state_dict"):
            budget.load_state_dict(broken)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"sparsity": 1.0}, "sparsity.*1.0"),
        ({"sparsity": 0.5, "kind": "kl"}, "kl.*0.5"),
        ({"kind": "other"}, "kind.*other"),
        ({"schedule": "other"}, "schedule.*other"),
        ({"schedule": "cubic", "steps": 5}, "cubic.*None"),
        ({"schedule": "cubic", "sparsity": 0.5}, "cubic.*0.5 and 0"),
        ({"strength": 1.0}, "strength.*1.0"),
        ({"strength": -1.0, "kind": "kl"}, "strength.*-1.0"),
        ({"begin": -1}, "begin.*-1"),
    ],
)
def test_impossible_budgets_are_named(masked, options, named):
    with pytest.raises(ValueError, match=named):
        sp.Budget(masked(), **options)


def test_models_without_trainable_masks_are_refused(dense, masked):
    with pytest.raises(ValueError, match="masked layer"):
        sp.Budget(dense)
    with pytest.raises(ValueError, match="mask_logits"):
        sp.Budget(masked().requires_grad_(False))


def test_an_epoch_without_a_flip_is_said_with_the_numbers(masked, loader):
    """The usual mistake: one optimiser with one rate for everything."""
    model = masked()
    budget = sp.Budget(model)
    train(model, loader, steps=4, logit_lr=1e-3, budget=budget)
    with pytest.warns(
        StuckMaskWarning, match=r"moved by 0\.00\d+ of the 2\.9 .*from 0\.001 to about [01]\.\d+"
    ) as caught:
        assert budget.end_epoch(logit_lr=1e-3)["flipped"] == 0
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        budget.end_epoch()  # once is enough


def test_an_unknown_rate_is_to_be_raised_by_a_factor(masked, loader):
    model = masked()
    budget = sp.Budget(model, kind="none")
    train(model, loader, steps=4, logit_lr=1e-3)
    with pytest.warns(StuckMaskWarning, match=r"factor of about \d{3,4}$"):
        budget.end_epoch()


def test_logits_that_no_optimiser_has_are_suspected(masked):
    with pytest.warns(StuckMaskWarning, match="parameter_groups"):
        sp.Budget(masked()).end_epoch()


def test_finetune_warns_where_no_weight_will_flip_before_its_end(masked, loader):
    with pytest.warns(StuckMaskWarning, match=r"from 0\.01 to"):
        finetune(masked(), loader, FinetuneConfig(epochs=2, logit_lr=0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("error", StuckMaskWarning)
        result = finetune(masked(), loader, FinetuneConfig(epochs=16, logit_lr=0.2))
    assert result.history[-1]["flipped"] > 0


def test_masks_of_a_fixed_number_are_never_stuck(loader):
    model = sp.nn.NMMaskedLinear(8, 3, pattern="2:4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sp.Budget(model, kind="none").end_epoch()["flipped"] == 0


def test_mask_loss_prices_weights_and_nats(masked):
    model = masked()
    kept = expected_kept(logits_of(model)).item()
    assert sp.mask_loss(model).item() == 0
    assert sp.mask_loss(model, l0=0.5).item() == pytest.approx(0.5 * kept)
    prior = {name: layer.mask_logits.detach() - 1 for name, layer in masked_layers(model).items()}
    kl = sum(sp.nn.layer_kl(model, prior).values()).item()
    assert kl > 0
    assert sp.mask_loss(model, l0=0.5, kl=2.0, prior_logits=prior).item() == pytest.approx(0.5 * kept + 2 * kl)
    same = sum(sp.nn.layer_kl(model, dict.fromkeys(prior, 0.0)).values()).item()
    assert sp.mask_loss(model, kl=1.0, prior_logits=0).item() == pytest.approx(same)


def test_mask_loss_counts_weights_and_not_blocks():
    rows = sp.nn.StructuredMaskedLinear(6, 4, structure="rows", keep=0.5)
    assert sp.mask_loss(rows, l0=1.0).item() == pytest.approx(12)
    assert sp.mask_loss(sp.nn.NMMaskedLinear(8, 4, pattern="2:4"), l0=1.0).item() == 16
    hard = sp.nn.MaskedLinear(3, 3, estimator="hard_concrete")
    assert sp.mask_loss(hard, l0=1.0).item() == pytest.approx(sp.functional.expected_l0(hard.mask_logits).item())


def test_mask_loss_counts_tied_masks_once():
    first, second = (torch.nn.utils.skip_init(torch.nn.Linear, 3, 3) for _ in range(2))
    second.weight = first.weight
    model = sp.convert(torch.nn.Sequential(first, second), keep_kept=0.5)
    assert sp.mask_loss(model, l0=1.0).item() == pytest.approx(4.5)
    one = sp.nn.layer_kl(model, {"0.weight": 1.0})["0.weight"].item()
    assert sp.mask_loss(model, kl=1.0, prior_logits=1.0).item() == pytest.approx(one)


def test_mask_loss_under_accumulation_has_the_gradient_of_one_step(masked):
    def gradient(parts):
        model = masked()
        for _ in range(parts):
            sp.mask_loss(model, l0=0.1, kl=0.2, prior_logits=-1.0, accumulation=parts).backward()
        return [logits.grad for logits in logits_of(model)]

    for once, thrice in zip(gradient(1), gradient(3), strict=True):
        torch.testing.assert_close(once, thrice)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"l0": -1.0}, "l0.*-1.0"),
        ({"kl": 1.0}, "prior_logits"),
        ({"accumulation": 0}, "accumulation.*0"),
        ({"kl": 1.0, "prior_logits": {}}, "prior_logits.*0.weight"),
    ],
)
def test_impossible_mask_losses_are_named(masked, options, named):
    with pytest.raises(ValueError, match=named):
        sp.mask_loss(masked(), **options)
