"""LoRA that stays sparse on whole models: zeros, merging, freezing, resumption, and torch's fast path."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.nn import MaskedLinear, MaskedLoRALinear, SparseLoRALinear
from stochprune.runs import ranks
from tests.nn.zoo import numbers

X, TARGET = numbers(16, 8, seed=3), numbers(16, 4, seed=4)


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network of masked layers."""
    layers = (MaskedLinear(8, 12, keep=0.6, stream=1), MaskedLinear(12, 4, keep=0.6, stream=2))
    for layer in layers:
        layer.mask_logits.detach().copy_(numbers(*layer.weight.shape, seed=layer.stream))
    return nn.Sequential(layers[0], nn.Tanh(), layers[1]).to(dtype)


def adapted(kind: str, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network with updates: under its own masks, or as a pruned model under its zeros."""
    model = network(dtype) if kind == "learnt" else sp.harden(network(dtype), 0.5, scope="layer")
    return sp.nn.add_lora(model, 2, dropout=dropout)


def train(model: nn.Module, steps: int = 5, optimiser: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
    optimiser = optimiser or torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(X.to(model[0].weight.dtype)) - TARGET).square().mean().backward()
        optimiser.step()
    return optimiser


def zeros(model: nn.Module) -> list[Tensor]:
    return [module.weight == 0 for module in model if isinstance(module, nn.Linear)]


KINDS = ("learnt", "fixed")


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_update_changes_no_output_and_freezes_the_rest(kind):
    before = network().eval() if kind == "learnt" else sp.harden(network(), 0.5, scope="layer").eval()
    model = adapted(kind).eval()
    assert torch.equal(model(X), before(X))
    trained = {name.split(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B"} | ({"mask_logits"} if kind == "learnt" else set())
    assert {type(layer) for layer in model} == {MaskedLoRALinear if kind == "learnt" else SparseLoRALinear, nn.Tanh}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_keeps_every_zero_and_every_output(dtype, dropout):
    pruned = sp.harden(network(dtype), 0.5, scope="layer")
    want = zeros(pruned)
    model = sp.nn.add_lora(pruned, 2, dropout=dropout)
    base = [layer.weight.clone() for layer in (model[0], model[2])]
    train(model)
    y = model.eval()(X.to(dtype))
    sp.nn.merge_lora(model)
    assert all(torch.equal(a, b) for a, b in zip(zeros(model), want, strict=True))
    assert torch.equal(model(X.to(dtype)), y)
    assert type(model[0]) is nn.Linear and model[0].weight.dtype == dtype
    assert not any(torch.equal(layer.weight, w) for layer, w in zip((model[0], model[2]), base, strict=True))


def test_a_learnt_mask_and_its_update_are_hardened_together():
    model = adapted("learnt")
    start = model[0].mask_logits.detach().clone()
    train(model)
    assert not torch.equal(model[0].mask_logits, start)
    y, kept = model.eval()(X), [layer.mask() for layer in (model[0], model[2])]
    hardened = sp.harden(model)
    assert torch.equal(hardened(X), y)
    assert all(torch.equal(z, ~mask) for z, mask in zip(zeros(hardened), kept, strict=True))


def test_equal_probabilities_are_cut_by_the_updated_weights():
    layer = adapted("learnt")[0]
    layer.lora_B.detach().copy_(numbers(12, 2))
    layer.mask_logits.detach().zero_()
    weight = layer.unmasked_weight().detach()
    pruned = sp.harden(layer, 0.5).weight
    assert weight[pruned == 0].abs().max() < weight[pruned != 0].abs().min()


def test_merging_under_a_learnt_mask_gives_the_next_masks():
    model = adapted("learnt")
    train(model, 3)
    merged = sp.nn.merge_lora(copy.deepcopy(model))
    assert {type(layer) for layer in merged} == {MaskedLinear, nn.Tanh}
    assert merged.state_dict().keys() == network().state_dict().keys()
    for _ in range(2):
        torch.testing.assert_close(merged(X), model(X))


@pytest.mark.parametrize("kind", KINDS)
def test_resumption_repeats_masks_and_dropout(kind):
    model = adapted(kind, dropout=0.3)
    optimiser = train(model, 3)
    saved = copy.deepcopy((model.state_dict(), optimiser.state_dict()))
    train(model, 3, optimiser)
    resumed = adapted(kind, dropout=0.3)
    resumed.load_state_dict(saved[0])
    other = torch.optim.Adam([p for p in resumed.parameters() if p.requires_grad], lr=0.05)
    other.load_state_dict(saved[1])
    train(resumed, 3, other)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_without_updates_loads(kind):
    model = adapted(kind)
    train(model, 1)
    update = model[0].lora_B.detach().clone()
    dense = {key: value + 1 for key, value in model.state_dict().items() if key.endswith(("weight", "bias"))}
    assert model.load_state_dict(dense).missing_keys == []
    assert torch.equal(model[0].lora_B, update) and torch.equal(model[0].weight, dense["0.weight"])
    empty = adapted(kind).to("meta").to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*0\.lora_A.*mask_draw"):
        empty.load_state_dict(dense)
    assert empty.load_state_dict(model.state_dict()) and torch.equal(empty[0].lora_B, update)


def test_several_samples_in_one_forward():
    model = adapted("learnt", dropout=0.3)
    train(model, 2)
    other = copy.deepcopy(model)
    with sp.nn.batched_samples(model, 3):
        y = model(X.repeat(3, 1))
    torch.testing.assert_close(y, torch.cat([other(X) for _ in range(3)]))


def test_a_compiled_model_has_the_masks_of_an_eager_one():
    model = adapted("learnt")
    train(model, 2)
    eager = copy.deepcopy(model)
    torch.testing.assert_close(torch.compile(model, backend="eager")(X), eager(X))


def test_the_dropout_stops_in_evaluation_and_differs_by_layer_name_and_step():
    model = adapted("fixed", dropout=0.5)
    for layer in (model[0], model[2]):
        layer.lora_B.detach().copy_(numbers(*layer.lora_B.shape))
    first = model(X)
    assert not torch.equal(model(X), first)
    assert int(model[0].mask_draw) == 2 and model[0].stream != model[2].stream
    other = sp.nn.add_lora(sp.harden(network(), 0.5, scope="layer"), 2, dropout=0.5, name="other")
    assert other[0].stream != model[0].stream
    model.eval()
    assert torch.equal(model(X), model(X)) and int(model[0].mask_draw) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_each_rank_of_a_training_drops_activations_of_its_own(kind, monkeypatch):
    layer = adapted(kind, dropout=0.5)[0]
    layer.lora_B.detach().copy_(numbers(*layer.lora_B.shape))
    first, second, set_by_hand = layer, copy.deepcopy(layer), copy.deepcopy(layer)
    set_by_hand.mask_rank = 1
    y = first(X)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    found = second(X)
    assert not torch.equal(found, y) and torch.equal(found, set_by_hand(X))
    assert torch.equal(second.eval()(X), first.eval()(X))


def test_include_and_exclude():
    model = sp.nn.add_lora(sp.harden(network(), 0.5, scope="layer"), include="0.*")
    assert type(model[0]) is SparseLoRALinear and type(model[2]) is nn.Linear
    model = sp.nn.add_lora(network(), exclude="0.*")
    assert type(model[0]) is MaskedLinear and type(model[2]) is MaskedLoRALinear


class ReadsTheWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.utils.skip_init(nn.Linear, 8, 4)

    def forward(self, x):
        return nn.functional.linear(x, self.inner.weight)


def test_a_module_that_reads_a_weight_past_its_update_is_named():
    with pytest.warns(UserWarning, match=r"add_lora: .*updates: inner\.weight of ReadsTheWeight") as caught:
        sp.nn.add_lora(nn.Sequential(ReadsTheWeight()))
    assert caught[0].filename == __file__


def test_the_fast_path_of_an_encoder_layer_is_closed():
    """It reads the weights of its linear layers itself, without their updates."""
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    layer.to_empty(device="cpu").eval()
    for i, parameter in enumerate(layer.parameters()):
        parameter.detach().copy_(numbers(*parameter.shape, seed=i) / 4)
    sp.nn.add_lora(layer, 2, include="linear*")
    layer.linear1.lora_B.detach().copy_(numbers(16, 2))
    x = X.view(2, 8, 8)
    with torch.no_grad():
        fast = layer(x)
    torch.testing.assert_close(fast, layer(x.requires_grad_()))
