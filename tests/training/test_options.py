"""LoopOptions: optimisers, schedules, precision, accumulation, clipping, batches of every kind; and each resumed."""

from __future__ import annotations

import copy
import functools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

import stochprune as sp
from stochprune.data import Batches
from stochprune.nn import masked_layers
from stochprune.runs import CheckpointError, load_tensors, save_tensors
from stochprune.training import EMA, FinetuneConfig, LoopOptions, WeightConfig, finetune, train_weights

CONFIG = FinetuneConfig(epochs=3, checkpoint_every=2)
MOMENTUM = functools.partial(torch.optim.SGD, momentum=0.9)


def cosine(optimizer, steps):
    return lr_scheduler.CosineAnnealingLR(optimizer, steps)


def warm_up(optimizer, steps):
    first = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    rest = lr_scheduler.MultiStepLR(optimizer, [4, 6])
    return lr_scheduler.SequentialLR(optimizer, [first, rest], [3])


OPTIONS = {
    "the defaults": LoopOptions(),
    "another optimiser": LoopOptions(optimizer=MOMENTUM),
    "sums of rows and columns": LoopOptions(optimizer=torch.optim.Adafactor),
    "a schedule": LoopOptions(schedule=cosine),
    "a schedule of schedules": LoopOptions(schedule=warm_up),
    "one cycle": LoopOptions(schedule=lambda o, n: lr_scheduler.OneCycleLR(o, [0.1, 0.01], total_steps=n)),
    "accumulation": LoopOptions(accumulate=3),
    "clipping": LoopOptions(clip_norm=0.1),
    "bf16": LoopOptions(precision="bf16"),
    "fp16": LoopOptions(precision="fp16", schedule=cosine),
    "everything": LoopOptions(torch.optim.AdamW, cosine, None, "fp16", 2, 1.0),
}


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a, b):
    for one, other in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("killed_at", [1, 3, 4])
def test_a_killed_run_continues_bit_for_bit(masked, loader, recorder, stop, tmp_path, name, killed_at):
    options, whole, resumed = OPTIONS[name], masked(), masked()
    expected = finetune(whole, loader, CONFIG, options=options, callbacks=[EMA(0.9)])
    with pytest.raises(stop):
        finetune(
            masked(), loader, CONFIG, out=tmp_path, options=options, callbacks=[EMA(0.9), recorder(stop=killed_at)]
        )
    found = finetune(resumed, loader, CONFIG, out=tmp_path, options=options, callbacks=[EMA(0.9), recorder()])
    assert same(state_of(whole), state_of(resumed)) and found.history == expected.history
    again = masked()  # of a finished run
    assert finetune(again, loader, CONFIG, out=tmp_path, options=options, callbacks=[EMA(0.9)]).history == found.history
    assert same(state_of(whole), state_of(again))


def test_a_checkpoint_of_version_0_1_continues(masked, loader, recorder, stop, tmp_path):
    """It lacks the names of the groups."""
    whole, resumed, watch = masked(), masked(), recorder()
    expected = finetune(whole, loader, CONFIG)
    with pytest.raises(stop):
        finetune(masked(), loader, CONFIG, out=tmp_path, callbacks=[recorder(stop=5)])
    (path,) = tmp_path.glob("*/checkpoint.pt")
    payload = load_tensors(path)
    for group in payload["optimizer"]["param_groups"]:
        del group["name"]
    assert payload.keys() == {"format", "identity", "model", "optimizer", "position"}
    save_tensors(path, payload)
    assert finetune(resumed, loader, CONFIG, out=tmp_path, callbacks=[watch]).history == expected.history
    assert same(state_of(whole), state_of(resumed)) and len(watch.seen) == 8


def test_other_options_do_not_continue_a_run(masked, loader, recorder, tmp_path):
    finetune(masked(), loader, CONFIG, out=tmp_path)
    for options in (LoopOptions(precision="bf16"), LoopOptions(clip_norm=1.0), LoopOptions(schedule=cosine)):
        with pytest.raises(CheckpointError):
            finetune(masked(), loader, CONFIG, out=tmp_path, options=options)
    with pytest.raises(CheckpointError, match="EMA"):
        finetune(masked(), loader, CONFIG, out=tmp_path, callbacks=[EMA()])
    averaged = tmp_path / "averaged"
    finetune(masked(), loader, CONFIG, out=averaged, callbacks=[EMA(), EMA(0.5)])
    finetune(masked(), loader, CONFIG, out=averaged, callbacks=[recorder(), EMA(), EMA(0.5)])  # others do not matter
    with pytest.raises(CheckpointError, match="EMA"):
        finetune(masked(), loader, CONFIG, out=averaged, callbacks=[EMA()])


def test_the_optimiser_gets_named_groups_with_their_rates(masked, loader):
    seen = []

    def make(groups):
        seen.extend(groups)
        return torch.optim.AdamW(groups)

    finetune(masked(), loader, FinetuneConfig(1, logit_lr=0.3, weight_lr=0.01), options=LoopOptions(make))
    assert [(group["name"], group["lr"]) for group in seen] == [("logits", 0.3), ("weights", 0.01)]


def test_a_schedule_moves_every_rate_over_the_steps_of_the_training(masked, dense, loader, recorder):
    rates, optimizers = [], []

    def make(groups):
        optimizers.append(torch.optim.Adam(groups))
        return optimizers[-1]

    watch = recorder(lambda: rates.append([group["lr"] for group in optimizers[0].param_groups]))
    options = LoopOptions(make, cosine, accumulate=3)  # four batches an epoch: two steps
    finetune(masked(), loader, FinetuneConfig(2), options=options, callbacks=[watch])
    expected = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(1, 5)]
    assert [rate[0] for rate in rates] == pytest.approx([0.1 * factor for factor in expected])
    assert [rate[1] for rate in rates] == pytest.approx([1e-3 * factor for factor in expected])
    with pytest.raises(ValueError, match="schedule"):
        train_weights(dense, loader, WeightConfig(1, schedule="cosine"), options=options)


@pytest.mark.parametrize(
    "schedule, error", [(lambda o, n: lr_scheduler.ReduceLROnPlateau(o), "ReduceLROnPlateau"), (lambda o, n: 3, "int")]
)
def test_what_is_no_schedule_of_steps_is_named(masked, loader, schedule, error):
    with pytest.raises(TypeError, match=f"schedule.*{error}"):
        finetune(masked(), loader, CONFIG, options=LoopOptions(schedule=schedule))


def test_a_schedule_needs_a_length(dense, loader):
    with pytest.raises(ValueError, match="length"):
        train_weights(dense, Once(loader), WeightConfig(1), options=LoopOptions(schedule=cosine))


class Once:
    """A loader of unknown length, whose batches a generator makes."""

    def __init__(self, loader):
        self.loader = loader

    def set_epoch(self, epoch):
        self.loader.set_epoch(epoch)

    def __iter__(self):
        yield from self.loader


def test_a_generator_of_batches_trains_alike(masked, loader):
    a, b = masked(), masked()
    options = LoopOptions(accumulate=3)
    finetune(a, loader, CONFIG, options=options)
    finetune(b, Once(loader), CONFIG, options=options)
    assert same(state_of(a), state_of(b))


def test_accumulated_batches_are_one_large_batch(dense, problem, recorder):
    """The model is dense, because a masked one has another mask in each forward."""
    large, watch = copy.deepcopy(dense), recorder()
    config = WeightConfig(2, lr=0.1, optimizer="sgd")

    def parts(size):
        return [*zip(*(tensor.split(size) for tensor in problem), strict=True)]

    history = train_weights(dense, parts(10), config, options=LoopOptions(accumulate=3), callbacks=[watch])
    expected = train_weights(large, parts(30), config)
    close(dense, large)
    assert len(watch.seen) == 4
    assert [entry["loss"] for entry in history] == pytest.approx([entry["loss"] for entry in expected])


def test_the_penalty_of_a_budget_counts_once_under_accumulation(masked, loader):
    """The loss is the same under every mask, so that only the penalty could differ."""

    def price(model, batch):
        return sum(layer.mask_logits.sigmoid().sum() for layer in masked_layers(model).values())

    once, thrice = masked(), masked()
    for model, accumulate in ((once, 1), (thrice, 3)):
        options = LoopOptions(torch.optim.SGD, forward_loss=price, accumulate=accumulate)
        finetune(model, [next(iter(loader))] * accumulate, FinetuneConfig(3, budget="penalty"), options=options)
    close(once, thrice)
    assert not torch.equal(once[0].mask_logits, masked()[0].mask_logits)


def test_clipping_bounds_the_step(dense, loader):
    before = [parameter.detach().clone() for parameter in dense.parameters()]
    options = LoopOptions(lambda groups: torch.optim.SGD(groups), clip_norm=1e-3)
    train_weights(dense, [next(iter(loader))], WeightConfig(1, lr=1.0), options=options)
    moved = [(new - old).square().sum() for new, old in zip(dense.parameters(), before, strict=True)]
    assert torch.stack(moved).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_forward_runs_in_the_precision_and_parameters_keep_theirs(masked, loader, precision, dtype):
    model, seen = masked(), set()
    model[2].register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    result = finetune(model, loader, FinetuneConfig(20, weight_lr=0.02), options=LoopOptions(precision=precision))
    assert seen == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]


def test_the_scaler_leaves_out_steps_that_overflow(dense, loader, recorder):
    """The first loss is so large that its scaled gradient overflows; the scale falls until it does not."""
    before = [parameter.detach().clone() for parameter in dense.parameters()]

    def steep(model, batch):
        return 1e3 * F.cross_entropy(model(batch[0]), batch[1])

    huge = LoopOptions(precision="fp16", forward_loss=steep)
    train_weights(dense, [next(iter(loader))], WeightConfig(1), options=huge)
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), before, strict=True))
    train_weights(dense, loader, WeightConfig(8), options=huge)
    assert all(bool(parameter.isfinite().all()) for parameter in dense.parameters())
    assert not torch.equal(next(dense.parameters()), before[0])


class Regressor(nn.Module):
    """A model of two inputs by name that returns its loss, as models of transformers do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, a, b, labels=None):
        logits = self.layer(a + b)
        return SimpleNamespace(logits=logits, loss=None if labels is None else F.cross_entropy(logits, labels))


class Two(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, a, b):
        return self.layer(a + b)


def test_mappings_tuples_and_hooks_train_alike(masked, loader):
    """The same loss by pairs, three tensors, mappings, and a hook on objects."""
    pairs, triples, mappings, hooked = masked(), Two(masked()), Regressor(masked()), masked()
    finetune(pairs, loader, CONFIG)
    finetune(triples, [(0.25 * x, 0.75 * x, y) for x, y in batches(loader)], CONFIG)
    finetune(mappings, [{"a": 0.25 * x, "b": 0.75 * x, "labels": y} for x, y in batches(loader)], CONFIG)
    objects = [SimpleNamespace(x=x, y=y) for x, y in batches(loader)]
    hook = LoopOptions(forward_loss=lambda model, batch: F.cross_entropy(model(batch.x), batch.y))
    finetune(hooked, objects, CONFIG, options=hook)
    plain = masked()
    finetune(plain, batches(loader), CONFIG)
    for model in (triples.layer, mappings.layer, hooked):
        close(plain, model)
    assert not same(state_of(plain), state_of(pairs))  # whose order changes with the epoch


def batches(loader):
    return [*Batches(loader.x, loader.y, loader.batch_size, loader.seed)]


def test_a_mapping_without_a_loss_is_named(masked, loader):
    x, _ = next(iter(loader))
    with pytest.raises(TypeError, match=r"batch 0.*a, b.*forward_loss"):
        finetune(Regressor(masked()), [{"a": x, "b": x}], CONFIG)


def test_an_error_inside_the_model_stays_as_it_is(masked, loader):
    class Broken(Two):
        def forward(self, a):
            raise TypeError("inside")

    with pytest.raises(TypeError, match=r"^inside$"):
        finetune(Broken(masked()), loader, CONFIG)


def test_users_models_train(loader):
    """Batch norm, dropout, a frozen layer, a tied weight; dropout draws from torch's generator, so that is kept."""
    with torch.device("meta"):
        tied = nn.Linear(8, 8)
        model = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), tied, nn.Dropout(0.2), nn.Linear(8, 8), nn.Linear(8, 3)
        )
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    model[1].reset_parameters()
    model[5].weight = model[3].weight
    model[0].requires_grad_(False)
    frozen, untouched = model[0].weight.clone(), model[1].running_mean.clone()
    sp.convert(model)
    with torch.random.fork_rng():
        config, options = FinetuneConfig(6, weight_lr=0.02), LoopOptions(accumulate=2)
        result = finetune(model, loader, config, options=options, callbacks=[EMA(0.5)])
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert torch.equal(model[0].weight, frozen) and not torch.equal(model[1].running_mean, untouched)
    assert model[5].weight is model[3].weight
    budget = sp.Budget(model)
    assert budget.kept() == pytest.approx(0.95 * budget.count, rel=1e-5)


@pytest.mark.parametrize("spoil, named", [("data", "batch"), ("weights", r"2\.weight"), ("neither", "overflow")])
def test_a_loss_that_is_not_finite_is_explained(dense, loader, spoil, named):
    x, y = next(iter(loader))
    if spoil == "data":
        x[0, 0] = math.inf
    if spoil == "weights":
        dense[2].weight.data[0, 0] = math.nan
    factor = math.inf if spoil == "neither" else 1
    hook = LoopOptions(forward_loss=lambda model, batch: factor * model(batch[0]).square().sum())
    with pytest.raises(FloatingPointError, match=f"epoch 1 at step 1: .*{named}"):
        train_weights(dense, [(x, y)], WeightConfig(1), options=hook)


@pytest.mark.parametrize(
    "values, named",
    [
        ({"accumulate": 0}, "accumulate.*0"),
        ({"clip_norm": 0.0}, "clip_norm.*0.0"),
        ({"precision": "fp8"}, "precision.*fp8"),
        ({"optimizer": 3}, "optimizer.*3"),
    ],
)
def test_impossible_options_are_named(values, named):
    with pytest.raises(ValueError, match=named):
        LoopOptions(**values)
