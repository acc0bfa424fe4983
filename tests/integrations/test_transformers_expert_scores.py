"""Scores of experts in one tensor: Wanda by expert, SNIP by its gradient; others name what they leave out."""

from __future__ import annotations

import warnings

import pytest
import torch

import stochprune as sp
from stochprune.integrations.transformers.expert_scores import wanda_of_experts
from stochprune.integrations.transformers.experts import experts_of
from stochprune.training import prune
from stochprune.training.methods import make_config
from tests.integrations.tiny_models import IDS, build

BATCHES = [IDS, IDS.flip(1)]
PAIRS = [(ids, None) for ids in BATCHES]
WARNING = sp.nn.UnmaskedWeightsWarning


def inputs_by_hand(model):
    """Return the inputs of each expert [T, K] by weight name and expert, from what reaches the experts of a layer."""
    found = {}

    def look(prefix):
        def hook(experts, args):
            hidden, index, _ = args
            for e in index.unique().tolist():
                x = hidden[torch.where(index == e)[0]]
                up = experts.gate_up_proj[e]
                y = x @ (up if experts.is_transposed else up.mT)
                y = y + experts.gate_up_proj_bias[e] if experts.has_bias else y
                found.setdefault((f"{prefix}.gate_up_proj", e), []).append(x)
                found.setdefault((f"{prefix}.down_proj", e), []).append(experts._apply_gate(y))

        return hook

    handles = [module.register_forward_pre_hook(look(name)) for name, module in experts_of(model).items()]
    with torch.no_grad():
        for ids in BATCHES:
            model(ids)
    for handle in handles:
        handle.remove()
    return {key: torch.cat(parts) for key, parts in found.items()}


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])  # the latter has biases, and weights [E, K, N]
def test_each_expert_has_the_inputs_of_its_tokens(transformers, name):
    model = build(transformers, name)
    before, implementation = [p.clone() for p in model.parameters()], model.get_experts_implementation()
    scores = wanda_of_experts(model, PAIRS)
    assert model.get_experts_implementation() == implementation
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    inputs = inputs_by_hand(model)
    assert {name for name, _ in inputs} == {*scores}
    for (weight, expert), x in inputs.items():
        norms = (x.square().sum(0) / 4).sqrt()  # four examples
        size = model.get_parameter(weight)[expert].abs()
        expected = size * (norms[:, None] if name == "gpt_oss" else norms)
        assert torch.allclose(scores[weight][expert], expected, rtol=1e-4, atol=1e-7)


def test_an_expert_that_no_token_reaches_is_ranked_by_magnitude(transformers):
    model = build(transformers, "mixtral")
    (experts, *_) = experts_of(model)
    score = wanda_of_experts(model, [(IDS[:1, :1], None)], [f"{experts}.down_proj"])[f"{experts}.down_proj"]
    weight = model.get_parameter(f"{experts}.down_proj").abs()  # one token reaches two of four experts
    quiet = [e for e in range(4) if torch.equal(score[e].argsort(), weight[e].argsort())]
    assert len(quiet) == 2 and score[quiet].max() < 1e-3 * score.mean()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_wanda_starts_the_masks_of_experts(transformers, hf, pattern):
    model = build(transformers, "qwen3_moe")
    expected = wanda_of_experts(model, PAIRS)
    options = {} if pattern == "2:4" else {"sparsity": 0.5, "scope": "row"}
    hf.get_masked_model(model, hf.MaskConfig(pattern=pattern, initial="wanda", **options), calibration=BATCHES)
    layers = sp.nn.masked_layers(model)
    for name, score in expected.items():
        rows = {name: score.flatten(0, 1)}
        cut = sp.masks.n_of_m(rows, 2, 4) if pattern == "2:4" else sp.masks.from_scores(rows, 0.5, "row")
        assert torch.equal(layers[name].gate().flatten(0, 1), cut[name])


def test_snip_starts_the_masks_of_experts(transformers, hf):
    model, twin = build(transformers, "qwen3_moe"), build(transformers, "qwen3_moe")
    config = hf.MaskConfig(initial="snip", sparsity=0.5, targets=["*.experts.*"])
    masked = hf.get_masked_model(model, config, calibration=BATCHES)
    for ids in BATCHES:
        (twin(input_ids=ids, labels=ids).loss / 2).backward()
    for name, layer in sp.nn.masked_layers(masked).items():
        weight = twin.get_parameter(name)
        score = (weight * weight.grad).abs()
        assert layer.gate().any() and not layer.gate().all()
        assert score[layer.gate()].min() > 0.999 * score[~layer.gate()].max()
    with pytest.raises(ValueError, match="labels"):
        hf.get_masked_model(twin, config, calibration=[{"input_ids": IDS}])


@pytest.mark.parametrize("score", ["magnitude", "snip", "wanda", "sparsegpt"])
def test_scores_name_the_experts_that_they_leave_out(transformers, score):
    model, batch = build(transformers, "mixtral"), {"input_ids": IDS, "labels": IDS}
    with pytest.warns(WARNING, match=rf"^{score}: .*experts\.gate_up_proj"):
        sp.scores.by_name(score)(model, None, [batch])
    with warnings.catch_warnings():
        warnings.simplefilter("error", WARNING)
        sp.scores.by_name(score)(model, None, [batch], exclude=["*.experts.*", "*.gate.*"])


METHODS = {
    "one_shot": {"score": "snip"},
    "maskllm": {},
    "gradual_magnitude": {},
    "mask_finetuning": {"score": "wanda"},
}


@pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")
@pytest.mark.parametrize("method", METHODS)
def test_methods_name_them_once(transformers, recwarn, method):
    model = build(transformers, "mixtral", num_hidden_layers=1)
    config = make_config(method, {"epochs": 1, "sparsity": 0.5, "exclude": "lm_head.*", **METHODS[method]})
    prune(model, [{"input_ids": IDS, "labels": IDS}], config)
    named = [str(each.message) for each in recwarn if each.category is WARNING]
    assert len(named) == 1 and named[0].startswith("prune: ") and "experts.gate_up_proj" in named[0]
