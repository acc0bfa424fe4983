"""masks.of: the masks of hardened and of converted models."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import stochprune as sp
from stochprune.seeding import generator


def network() -> nn.Sequential:
    numbers = generator(3, "masks of a model")
    with torch.device("meta"):  # torch's own initial values come from its global generator
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.Embedding(5, 16)
        )
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data = torch.from_numpy(numbers.uniform(0.1, 1.0, tuple(parameter.shape))).float()
    for name, buffer in model[1].named_buffers():
        buffer.fill_(1 if "var" in name else 0)
    return model


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_hardened_model_has_the_masks_that_it_was_cut_with() -> None:
    model = network()
    masks = sp.masks.from_scores(sp.scores.magnitude(model), 0.7)
    sp.convert(model, masks)
    assert same(sp.masks.of(model), masks)
    hardened = sp.harden(model)
    assert same(sp.masks.of(hardened), masks)
    assert sp.masks.sparsity(sp.masks.of(hardened)) == pytest.approx(0.7, abs=0.01)


def test_other_weights_count_where_some_entries_are_zero() -> None:
    model = network()
    assert set(sp.masks.of(model)) == {"0.weight", "3.weight"}  # the table has no zero
    model[4].weight.data[2, 3] = 0
    assert int((~sp.masks.of(model)["4.weight"]).sum()) == 1
    for layer in (model[3], model[4]):
        layer.weight.data.zero_()  # not yet trained, rather than pruned
    assert set(sp.masks.of(model)) == {"0.weight"}


def test_a_tied_weight_has_its_first_name() -> None:
    model = network()
    model[4].weight = model[3].weight
    assert [*sp.masks.of(sp.convert(model))] == ["0.weight", "3.weight"]
    model[3].weight.data[0, 0] = 0
    assert [*sp.masks.of(model)] == ["0.weight", "3.weight"]


class Recurrent(nn.Module):
    """A model whose weights have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.bilinear = nn.Bilinear(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lstm(x)[0]
        z = self.attention(y, y, y)[0].mean(1)
        out: torch.Tensor = self.bilinear(z, z)
        return out


def recurrent() -> Recurrent:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Recurrent()


def test_weights_of_attention_and_recurrent_modules_have_masks() -> None:
    model = recurrent()
    masks = sp.masks.from_scores(sp.scores.magnitude(model), 0.7)
    assert {"lstm.weight_hh_l0", "attention.in_proj_weight", "bilinear.weight"} < set(masks)
    sp.convert(model, masks)
    assert same(sp.masks.of(model), masks)
    assert same(sp.masks.of(sp.harden(model)), masks)


def test_prune_finetune_leaves_their_pruned_weights_at_zero() -> None:
    x = torch.from_numpy(generator(3, "x").normal(size=(16, 4, 6))).float()
    config = sp.training.FinetuneConfig(epochs=1)
    model = sp.prune_finetune(recurrent(), [(x, torch.arange(16) % 3)], sparsity=0.7, config=config)
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == round(0.7 * sum(weight.numel() for weight in weights))


def test_what_torch_pruned_has_one_name() -> None:
    model = network()
    prune.l1_unstructured(model[3], "weight", 0.5)
    assert set(sp.masks.of(model)) == {"0.weight", "3.weight"}


def test_weights_without_values_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"0\.weight.*meta"):
        sp.masks.of(model)
