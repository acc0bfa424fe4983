"""masks.of: the masks of hardened and of converted models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 6)


def test_weights_with_other_names_count() -> None:
    with torch.random.fork_rng(devices=[]):
        model = Recurrent()
    names = {f"attention.{name}" for name in ("in_proj_weight", "out_proj.weight")}
    names |= {f"lstm.{name}" for name in ("weight_ih_l0", "weight_hh_l0")}
    masks = sp.masks.from_scores({name: model.get_parameter(name).detach().abs() for name in names}, 0.5)
    sp.convert(model, masks)
    assert same(sp.masks.of(model), masks)
    assert same(sp.masks.of(sp.harden(model)), masks)
