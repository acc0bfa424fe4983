"""Schedules: their curves, what they move in a real training, and that a resumed run stays on the curve."""

from __future__ import annotations

import math

import pytest
import torch

from stochprune.nn import masked_layers
from stochprune.training import FinetuneConfig, PriorStrength, Sparsity, Temperature, finetune


@pytest.mark.parametrize(
    "schedule, middle",
    [
        (Temperature(2.0, 0.5, 100, begin=10), 1.0),  # the geometric mean
        (Sparsity(0.0, 0.8, 100, begin=10), 0.8 * (1 - 1 / 8)),
        (PriorStrength(0.0, 3.0, 100, begin=10), 1.5),
    ],
)
def test_curves(schedule, middle):
    assert schedule.value(0) == schedule.value(10) == pytest.approx(schedule.start)
    assert schedule.value(60) == pytest.approx(middle)
    assert schedule.value(110) == schedule.value(10**6) == pytest.approx(schedule.end)


def test_sparsity_is_the_cubic_of_zhu_and_gupta():
    s_i, s_f, t0, n, dt = 0.2, 0.9, 7, 5, 4
    schedule = Sparsity(s_i, s_f, n * dt, begin=t0)
    for t in range(t0, t0 + n * dt + 1, dt):
        assert schedule.value(t) == pytest.approx(s_f + (s_i - s_f) * (1 - (t - t0) / (n * dt)) ** 3)


class Recorder:
    """Records the values that a training uses in each step: at the end of the step before, after the schedules."""

    def __init__(self):
        self.temperatures, self.kept = [], []

    def on_start(self, state):
        self.on_step(state)

    def on_step(self, state):
        layers = masked_layers(state.model).values()
        self.temperatures.append({layer.temperature for layer in layers})
        self.kept.append(sum(torch.sigmoid(layer.mask_logits.detach().double()).sum().item() for layer in layers))


def test_a_training_follows_its_schedules(masked, loader):
    model, seen = masked(), Recorder()
    schedules = [Temperature(1.0, 0.25, 8), Sparsity(0.5, 0.9, 8)]
    finetune(model, loader, FinetuneConfig(epochs=3, estimator="concrete"), callbacks=[*schedules, seen])
    assert seen.temperatures == [{0.25 ** min(step / 8, 1)} for step in range(13)]  # 12 steps of 16 examples of 60
    count = sum(layer.mask_logits.numel() for layer in masked_layers(model).values())
    # The target set after step k is met by step k + 1.
    expected = [count * (1 - schedules[1].value(step)) for step in range(12)]
    assert seen.kept[1:] == pytest.approx(expected, rel=1e-4)


def test_prior_strength_moves_the_penalty(masked, loader):
    model = masked()
    schedule, strengths = PriorStrength(0.0, 1.0, 4), []

    class Look:
        def on_step(self, state):
            strengths.append(state.constraint.strength)

    finetune(model, loader, FinetuneConfig(epochs=1, budget="kl"), callbacks=[schedule, Look()])
    assert strengths == [0.25, 0.5, 0.75, 1.0]


class Killed(Exception):
    pass


class KillAt:
    def __init__(self, step):
        self.step = step

    def on_step(self, state):
        if state.step == self.step:
            raise Killed


def test_a_resumed_run_stays_on_the_curve(masked, loader, tmp_path):
    config = FinetuneConfig(epochs=3, estimator="concrete", checkpoint_every=2)
    schedules = [Temperature(1.0, 0.25, 8), Sparsity(0.5, 0.9, 8)]
    whole, resumed = masked(), masked()
    finetune(whole, loader, config, callbacks=schedules)
    with pytest.raises(Killed):
        finetune(resumed, loader, config, out=tmp_path, callbacks=[*schedules, KillAt(5)])
    resumed = masked()
    finetune(resumed, loader, config, out=tmp_path, callbacks=schedules)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Temperature(0.0, 1.0, 5), "start.*got 0.0"),
        (lambda: Sparsity(0.1, 1.0, 5), "end.*got 1.0"),
        (lambda: PriorStrength(-1.0, 1.0, 5), "start.*got -1.0"),
        (lambda: Temperature(1.0, math.inf, 5), "end.*got inf"),
        (lambda: Sparsity(0.1, 0.5, 0), "steps.*got 0 and 0"),
    ],
)
def test_bad_schedules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "schedule, budget, message",
    [
        (Sparsity(0.1, 0.5, 4), "kl", "Sparsity: .*shift.*penalty.*got kl"),
        (PriorStrength(0.1, 0.5, 4), "shift", "PriorStrength: .*kl.*penalty.*got shift"),
    ],
)
def test_a_schedule_for_another_budget_is_refused(schedule, budget, message, masked, loader):
    with pytest.raises(ValueError, match=message):
        finetune(masked(), loader, FinetuneConfig(epochs=1, budget=budget), callbacks=[schedule])
