"""Layers of one's own: registered, converted, trained, hardened; subclasses by permission."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stochprune as sp
from stochprune.models.initialise import initialised
from stochprune.nn import registry
from tests.nn.zoo import numbers


class Experts(nn.Module):
    """Three experts in one tensor, and a router that is a layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.up = nn.Parameter(torch.empty(3, 6, 4))
        self.down = nn.ParameterList([nn.Parameter(torch.empty(4, 6))])

    def forward(self, x: Tensor) -> Tensor:
        experts = torch.einsum("mk,eko->moe", x, self.up)
        return (experts @ self.router(x).softmax(-1).unsqueeze(-1)).squeeze(-1) @ self.down[0]


class MaskedExperts(sp.nn.MaskedModule, Experts):
    dense_type = Experts
    weights = ("up", "down.0")


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class MaskedDoubled(sp.nn.MaskedLinear):
    dense_type = Doubled

    def _dense_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return 2 * super()._dense_forward(x, weight)

    def _masked_forward(self, x: Tensor, **at) -> Tensor:
        return 2 * super()._masked_forward(x, **at)


class Renamed(nn.Linear):
    """Overrides nothing that a forward uses."""

    def extra_repr(self) -> str:
        return "another name"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_MASKED", dict(registry._MASKED))


def mixture() -> nn.Module:
    model = initialised(lambda: nn.Sequential(Experts(), Doubled(6, 2)), 0)
    for name in ("0.up", "0.down.0"):
        parameter = model.get_parameter(name)
        parameter.detach().copy_(numbers(*parameter.shape))
    return model


def test_layers_of_one_s_own():
    sp.nn.register(Experts, MaskedExperts)
    sp.nn.register(Doubled, MaskedDoubled)
    sp.nn.register(Doubled, MaskedDoubled)  # again: nothing new
    model, x = mixture(), numbers(5, 6)
    dense = model(x)
    keys = set(model.state_dict())
    sp.convert(model)
    assert set(sp.nn.masked_layers(model)) == {"0.up", "0.down.0", "0.router.weight", "1.weight"}
    assert isinstance(model[1], MaskedDoubled) and isinstance(model[0].router, sp.nn.MaskedLinear)
    torch.testing.assert_close(model.eval()(x), dense)
    model.train()(x).square().mean().backward()
    assert all(layer.mask_logits.grad.any() for layer in sp.nn.masked_layers(model).values())
    sp.harden(model, 0.5)
    assert (type(model[0]), type(model[0].router), type(model[1])) == (Experts, nn.Linear, Doubled)
    assert set(model.state_dict()) == keys and not model[0].down[0].all() and model(x).isfinite().all()


def test_a_type_has_one_masked_type():
    sp.nn.register(Doubled, MaskedDoubled)
    with pytest.raises(ValueError, match=r"MaskedDoubled .*Doubled"):
        sp.nn.register(Doubled, type("Other", (MaskedDoubled,), {}))


def test_a_name_that_is_not_there():
    sp.nn.register(
        Experts, type("Misspelt", (sp.nn.MaskedModule, Experts), {"dense_type": Experts, "weights": ("upp",)})
    )
    with pytest.raises(ValueError, match=r"0 \(Experts\) .*no parameter upp"):
        sp.convert(mixture(), exclude="1.*")


def test_subclasses_by_permission():
    model = initialised(lambda: nn.Sequential(Doubled(6, 5), Renamed(5, 4)), 0)
    with pytest.raises(
        ValueError, match=r"0 \(Doubled\) .*test_registry\.Doubled.*torch\.nn\.Linear.*forward.*allow_subclasses"
    ):
        sp.convert(model)
    with pytest.raises(TypeError, match=r"allow_subclasses .*'yes'"):
        sp.convert(model, allow_subclasses="yes")
    model = sp.convert(model, allow_subclasses=True).eval()
    assert [type(layer) for layer in model] == [sp.nn.MaskedLinear] * 2
    assert [type(layer) for layer in sp.harden(model)] == [nn.Linear] * 2


def test_a_subclass_that_overrides_nothing_needs_no_permission():
    model, x = initialised(lambda: nn.Sequential(Renamed(5, 4)), 0), numbers(3, 5)
    expected = model(x)
    torch.testing.assert_close(sp.convert(model).eval()(x), expected)
    torch.testing.assert_close(F.relu(sp.harden(model)(x)), F.relu(expected))


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, self.qkv.weight).to(self.out.weight.dtype))


class MaskedReader(sp.nn.MaskedModule, Reader):
    dense_type, weights = Reader, ("qkv.weight",)


def test_a_module_that_reads_the_weight_of_a_child_is_told_until_it_is_registered():
    def build() -> nn.Module:
        return initialised(lambda: nn.Sequential(Reader(), nn.TransformerEncoderLayer(4, 2, 4)), 0)

    with pytest.warns(sp.nn.UnmaskedWeightsWarning, match=r"qkv\.weight of Reader, such as 0\.") as caught:
        sp.convert(build())
    assert caught[0].filename == __file__ and len(caught) == 1 and "out.weight" not in str(caught[0].message)
    sp.nn.register(Reader, MaskedReader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = sp.convert(build())[0]
    model(numbers(3, 4)).sum().backward()
    assert all(layer.mask_logits.grad.any() for layer in sp.nn.masked_layers(model).values())


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_patterns_that_fit_nothing_are_refused_with_the_nearest_names(argument):
    model = initialised(lambda: nn.ModuleDict({"encoder": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}), 0)
    with pytest.raises(ValueError, match=rf"{argument} 'enocder\.weight' .*encoder\.weight"):
        sp.convert(model, **{argument: ["encoder.weight", "enocder.weight"]})
    with pytest.raises(ValueError, match=r"include 'norm\.\*' .*norm\.weight"):
        sp.convert(model, include=["encoder.*", "norm.*"])
    assert not sp.nn.masked_layers(model)
    sp.convert(model, exclude=["norm.*", nn.Conv2d])  # a weight that is there, a type that need not be


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_else_has_weights_is_told():
    model = initialised(lambda: nn.ModuleDict({"fc": nn.Linear(4, 4), "bag": nn.EmbeddingBag(9, 4)}), 0)
    with pytest.raises(ValueError, match=r"bag \(EmbeddingBag\) .*nn\.Embedding"):
        sp.convert(model, include="*")
    sp.convert(model)  # a table stays dense, as embeddings do
    assert list(sp.nn.masked_layers(model)) == ["fc.weight"]
    with pytest.raises(ValueError, match=r"RecursiveScriptModule.* scripted"):
        sp.convert(nn.Sequential(torch.jit.script(initialised(lambda: nn.Linear(4, 4), 0))))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(4, 4, device="meta")


class MaskedOuter(sp.nn.MaskedModule, Outer):
    dense_type = Outer
    weights = ("inner.weight_ih_l0",)


def test_a_child_is_masked_by_one_module_alone(monkeypatch):
    monkeypatch.setattr(registry, "_MASKED", dict(registry._MASKED))
    sp.nn.register(Outer, MaskedOuter)
    with pytest.raises(ValueError, match=r"Outer.*0\.inner\.weight_ih_l0.*inner"):
        sp.convert(nn.Sequential(Outer()))
    sp.convert(nn.Sequential(Outer()), exclude="*.weight_hh_l0")


def test_the_base_of_all_modules_cannot_be_registered():
    with pytest.raises(TypeError, match=r"register: dense_type.*torch\.nn\.Module"):
        sp.nn.register(nn.Module, MaskedExperts)
