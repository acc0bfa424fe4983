"""batched_samples: the networks of one forward are those of as many forwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune import models
from stochprune.seeding import generator

DRAWS = 5


def _numbers(*shape: int) -> Tensor:
    return torch.from_numpy(generator(0, "many draws").standard_normal(shape)).float()


class _Tokens(nn.Module):
    """Embedding, a linear layer over tokens, one over sentences, an optional batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(48, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.mix(self.table(tokens)).relu())
        return self.head(x.flatten(1))


def _convolutions(mode: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.Conv2d(2, 4, 3, padding="same", groups=2),
        nn.Flatten(),
        nn.Linear(4 * 12 * 12, 3),
    )


def _nm() -> nn.Module:
    return sp.convert(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), pattern="2:4", seed=3)


CASES = ("linear", "zeros", "circular", "tokens", "resnet20", "nm", "blocks", "filters", "gates")


def _case(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):  # torch's layers start from its global generator
        return _cases()[name]


def _cases() -> dict[str, tuple[nn.Module, Tensor]]:
    images = _numbers(DRAWS * 3, 2, 6, 6)
    tokens = torch.from_numpy(generator(1, "tokens").integers(0, 11, (DRAWS * 3, 6)))
    return {
        "linear": (sp.convert(nn.Linear(7, 4), keep_kept=0.5, seed=3), _numbers(DRAWS * 2, 7)),
        "zeros": (sp.convert(_convolutions("zeros"), keep_kept=0.5, seed=3), images),
        "circular": (sp.convert(_convolutions("circular"), keep_kept=0.5, seed=3), images),
        "tokens": (sp.convert(_Tokens(), include=["*"], keep_kept=0.5, seed=3), tokens),
        "resnet20": (
            sp.convert(models.build("resnet20", (3, 32, 32), 10, 0), keep_kept=0.9),
            _numbers(DRAWS, 3, 32, 32),
        ),
        "nm": (_nm(), _numbers(DRAWS * 2, 16)),
        "filters": (sp.nn.FilterMaskedConv2d(2, 3, 3, keep=0.5), images),
        "gates": (
            sp.nn.gate_branches(nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 4)), "1", keep=0.5, seed=2),
            _numbers(DRAWS * 2, 7),
        ),
        "blocks": (sp.nn.StructuredMaskedLinear(8, 4, structure="2x4", keep=0.5), _numbers(DRAWS * 2, 8)),
    }


@pytest.mark.parametrize("case", CASES)
def test_the_networks_are_those_of_single_forwards(case: str) -> None:
    model, x = _case(case)
    model.eval()
    with torch.no_grad(), sp.nn.sampling(model):
        alone = torch.cat([model(part) for part in x.chunk(DRAWS)])
        counters = [int(layer.mask_draw) for layer in sp.nn.masked_layers(model).values()]
        for layer in sp.nn.masked_layers(model).values():
            layer.mask_draw.zero_()
        with sp.nn.batched_samples(model, DRAWS):
            together = model(x)
            same = model(torch.cat([x[: len(x) // DRAWS]] * DRAWS))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert counters == [DRAWS] * len(counters)
    assert [int(layer.mask_draw) for layer in sp.nn.masked_layers(model).values()] == [2 * DRAWS] * len(counters)
    # and the networks differ, so that the order of draws was seen
    first, *others = same.chunk(DRAWS)
    assert not all(torch.allclose(first, other, atol=1e-3) for other in others)


def test_gradients_are_the_sums_over_the_networks() -> None:
    model, x = _case("zeros")
    found = []
    for many in (False, True):
        for layer in sp.nn.masked_layers(model).values():
            layer.mask_draw.zero_()
        model.eval().zero_grad()
        with sp.nn.sampling(model):
            if many:
                with sp.nn.batched_samples(model, DRAWS):
                    model(x).square().sum().backward()
            else:
                for part in x.chunk(DRAWS):
                    model(part).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 6
    for one, many in zip(*found, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-4)


def test_one_draw_and_layers_that_threshold_are_as_outside() -> None:
    model, x = _case("zeros")
    model.eval()
    outside = model(x)
    with sp.nn.batched_samples(model, DRAWS):  # evaluation mode samples nothing
        torch.testing.assert_close(model(x), outside)
    with sp.nn.sampling(model), sp.nn.batched_samples(model, 1):
        assert model(x[:3]).shape == (3, 3)
    assert not any(layer._forward_pre_hooks for layer in sp.nn.masked_layers(model).values())


def test_layers_that_begin_to_draw_inside_draw_many() -> None:
    model = sp.convert(nn.Sequential(nn.utils.skip_init(nn.Linear, 2, 2)), keep_kept=0.5).eval()
    x = _numbers(DRAWS, 2)
    with sp.nn.batched_samples(model, DRAWS), sp.nn.sampling(model):
        model(x)
    assert int(model[0].mask_draw) == DRAWS


def test_a_copy_made_inside_is_outside() -> None:
    model, x = _case("zeros")
    model.eval()
    with sp.nn.sampling(model), sp.nn.batched_samples(model, DRAWS):
        other = copy.deepcopy(model)
        together = model(x)
        alone = [other(part) for part in x[:12].split(3)]  # 4 forwards of 3, which does not divide into 5
        torch.testing.assert_close(torch.cat(alone), together[:12], rtol=1e-5, atol=1e-5)


def test_impossible_uses_are_refused() -> None:
    model, x = _case("zeros")
    model.train()
    with pytest.raises(ValueError, match=r"draws.*got 0"), sp.nn.batched_samples(model, 0):
        pass
    with pytest.raises(ValueError, match=r"\b15\b.*\b4\b"), sp.nn.batched_samples(model, 4):
        model(x)
    with (
        pytest.raises(ValueError, match="fused_masking"),
        sp.nn.batched_samples(model, 5),
        sp.nn.batched_samples(model, 3),
    ):
        pass
    with pytest.raises(ValueError, match="fused_masking"), sp.nn.fused_masking(model), sp.nn.batched_samples(model, 5):
        pass
    assert all(layer.draws_per_forward == 1 for layer in sp.nn.masked_layers(model).values())


def test_an_input_without_the_batch_is_refused() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.utils.skip_init(nn.Embedding, 6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table(torch.arange(6))

    model = sp.convert(Positions(), include=["*"]).train()
    with pytest.raises(ValueError, match=r"table\.weight.*\(6,\)"), sp.nn.batched_samples(model, 2):
        model(_numbers(4, 6, 4))


def test_a_batch_that_cannot_be_seen_is_refused() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = sp.nn.MaskedLinear(3, 2)

        def forward(self, given: dict[str, Tensor] | Tensor) -> Tensor:
            return self.fc(x=given)

    model, x = Network().train(), _numbers(4, 3)
    with sp.nn.batched_samples(model, 2):
        for given in ({"x": x}, torch.tensor(1.0)):
            with pytest.raises(ValueError, match=r"batched_samples: .*tensor"):
                model(given)
        with pytest.raises(ValueError, match=r"fc\.weight"):
            model.fc(x)
        with pytest.raises(ValueError, match=r"fc\.weight.*input"):
            model(x)


def test_the_counter_does_not_run_past_its_end() -> None:
    model = sp.nn.MaskedLinear(2, 2).train()
    model.mask_draw.fill_((1 << 32) - 3)
    with pytest.raises(RuntimeError, match="draw"), sp.nn.batched_samples(model, 4):
        model(_numbers(4, 2))
