"""prune_finetune: what it returns, that it does all four steps, and that it resumes."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.nn import MaskedLinear, masked_layers
from stochprune.training import CSVLogger, FinetuneConfig, LoopOptions, WeightConfig, finetune, train_weights

pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")
CONFIG = FinetuneConfig(epochs=4, logit_lr=0.5, weight_lr=0.02, checkpoint_every=3)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_is_the_four_steps(dense, loader):
    by_hand = copy.deepcopy(dense)
    masks = sp.masks.from_scores(sp.scores.magnitude(by_hand), 0.6)
    sp.convert(by_hand, masks)
    finetune(by_hand, loader, CONFIG)
    logits = {name: layer.mask_logits.detach() for name, layer in masked_layers(by_hand).items()}
    cut = sp.masks.from_scores(logits, 0.6)
    sp.harden(by_hand, 0.6)
    train_weights(by_hand, loader, WeightConfig(4, 0.02), masks=cut)
    assert sp.prune_finetune(dense.eval(), loader, 0.6, config=CONFIG) is dense
    assert same(dense, by_hand) and not dense.training
    assert sp.masks.sparsity(sp.masks.of(dense)) == pytest.approx(0.6, abs=0.01)
    assert not any(isinstance(module, MaskedLinear) for module in dense.modules())


def test_layers_can_stay_dense_and_weights_that_were_zero_are_trained(dense, loader):
    nn.init.zeros_(dense[2].weight)
    sp.prune_finetune(dense, loader, 0.5, exclude="2.*", config=CONFIG, score="random", scope="layer")
    assert int((dense[2].weight != 0).sum()) > 20  # all but those of hidden units that are never active
    assert int((dense[0].weight == 0).sum()) == 30


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = x.unflatten(1, (-1, 1)).expand(-1, -1, 4)
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_weights_of_attention_stay_pruned_and_zeros_that_are_kept_are_trained(loader):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Attentive()
    with torch.no_grad():
        model.head.weight[:2] = 0
        model.attention.out_proj.bias.fill_(1)
    config = FinetuneConfig(epochs=2, mode="frozen")
    sp.prune_finetune(model, loader, 0.5, config=config, score="random", scope="layer")
    zeros = {name: float((weight == 0).float().mean()) for name, weight in model.named_parameters() if weight.dim() > 1}
    assert zeros == {"attention.in_proj_weight": 0.5, "attention.out_proj.weight": 0.5, "head.weight": 0.5}


def test_n_of_m_starts_from_the_mask_of_the_score(dense, loader, recorder):
    """With the default configuration: logits that differ by 5.9 and have moved by one step of 0.1."""
    masks = sp.masks.n_of_m({"0.weight": sp.scores.magnitude(dense)["0.weight"]}, 1, 2)
    first = {}

    class Watch:
        def on_step(self, state):
            if not first:
                first.update({n: layer.mask_logits.detach().clone() for n, layer in masked_layers(state.model).items()})
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sp.prune_finetune(dense, loader, 0.5, pattern="1:2", exclude="2.*", callbacks=[Watch()])
    (kept, pruned), start = (first["0.weight"][each] for each in (masks["0.weight"], ~masks["0.weight"])), math.log(19)
    assert kept.max() - kept.min() < 0.21 and kept.mean() - pruned.mean() == pytest.approx(2 * start, abs=0.21)


@pytest.mark.parametrize("pattern", ["rows", "1:2"])
def test_patterns(dense, loader, pattern):
    sp.prune_finetune(dense, loader, 0.5, pattern=pattern, exclude="2.*", config=CONFIG, scope="layer")
    kept = dense[0].weight.ne(0)
    if pattern == "rows":
        assert kept.any(1).equal(kept.all(1)) and int(kept.any(1).sum()) == len(kept) // 2
    else:
        assert kept.unflatten(1, (-1, 2)).sum(2).eq(1).all()
    assert dense[2].weight.ne(0).all()


@pytest.mark.parametrize("killed_at", [5, 13, 19])
def test_it_resumes_in_both_trainings(dense, loader, recorder, stop, tmp_path, killed_at):
    class Count:
        def __init__(self):
            self.steps = 0

        def on_step(self, state):
            self.steps += 1
            if self.steps == killed_at:
                raise stop

    whole, killed, resumed = (copy.deepcopy(dense) for _ in range(3))
    config = WeightConfig(3, 0.02, checkpoint_every=2)
    options = LoopOptions(precision="bf16")
    arguments = {"score": "snip", "config": CONFIG, "weights": config, "options": options}
    sp.prune_finetune(whole, loader, 0.6, **arguments)
    with pytest.raises(stop):
        sp.prune_finetune(killed, loader, 0.6, out=tmp_path, callbacks=[Count()], **arguments)
    logger, watch = CSVLogger(tmp_path / "log"), recorder()
    sp.prune_finetune(resumed, loader, 0.6, out=tmp_path, callbacks=[logger, watch], **arguments)
    assert same(whole, resumed)
    assert len(watch.seen) <= 28 - killed_at + 3
    assert len((tmp_path / "log" / "weights.csv").read_text().splitlines()) == 4


def test_one_folder_holds_the_runs_of_several_sparsities(dense, loader, tmp_path):
    for sparsity in (0.5, 0.7):
        config = dataclasses.replace(CONFIG, budget_schedule="cubic", start="score")
        arguments = {"config": config, "weights": WeightConfig(1, 0.02)}
        alone = sp.prune_finetune(copy.deepcopy(dense), loader, sparsity, **arguments)
        kept = sp.prune_finetune(copy.deepcopy(dense), loader, sparsity, out=tmp_path, **arguments)
        assert same(alone, kept)


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"sparsity": 1.0}, "sparsity.*1.0"),
        ({"score": "x"}, "x"),
        ({"scope": "x"}, "scope.*x"),
        ({"sparsity": 0.99}, "0.99"),
    ],
)
def test_impossible_arguments_change_nothing(dense, loader, arguments, named):
    before = copy.deepcopy(dense)
    with pytest.raises(ValueError, match=named):
        sp.prune_finetune(dense, loader, **{"sparsity": 0.5, **arguments})
    assert same(before, dense) and type(dense[0]) is nn.Linear
