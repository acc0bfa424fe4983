"""get_masked_model, merge_and_unload and from_pretrained: starts, modes, dtypes, ties, and use in transformers."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import stochprune as sp
from tests.integrations.tiny_models import IDS, build, masks, run, same_state

BATCHES = [IDS, {"input_ids": IDS.flip(1), "attention_mask": torch.ones_like(IDS)}]


@pytest.fixture
def llama(transformers, hf):
    return build(transformers, "llama")


def test_the_body_is_masked_and_the_output_layer_and_tied_embeddings_are_not(transformers, hf):
    for name in ("llama", "qwen3"):
        model = hf.get_masked_model(build(transformers, name))
        assert [*sp.nn.masked_layers(model)] == [
            f"model.layers.{i}.{part}_proj.weight"
            for i in range(2)
            for part in (*(f"self_attn.{p}" for p in "qkvo"), "mlp.gate", "mlp.up", "mlp.down")
        ]
    everything = hf.get_masked_model(build(transformers, "qwen3"), hf.MaskConfig(targets=["*"]))
    assert everything.lm_head.mask_logits is everything.model.embed_tokens.mask_logits
    some = hf.get_masked_model(build(transformers, "llama"), hf.MaskConfig(targets=["*.mlp.*"], excludes=["*.1.*"]))
    assert {name.rpartition("_proj")[0] for name in sp.nn.masked_layers(some)} == {
        f"model.layers.0.mlp.{part}" for part in ("gate", "up", "down")
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_float32_and_come_back_with_the_next_mask(transformers, hf, tmp_path, dtype, tied):
    dense = build(transformers, "qwen3", tie_word_embeddings=tied)
    dense.save_pretrained(tmp_path / "dense")
    config = hf.MaskConfig(sparsity=0.5, targets=["*"], excludes=None if tied else ["*embed*"], seed=2**64 - 1)
    auto = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "dense", quantization_config=config, dtype=dtype, device_map=None).train()
    layers = sp.nn.masked_layers(model)
    assert {layer.weight.dtype for layer in layers.values()} == {dtype}
    assert {layer.mask_logits.dtype for layer in layers.values()} == {torch.float32}
    high = torch.logit(torch.tensor(0.95, dtype=torch.float64)).float()  # not rounded to the model's dtype
    assert all((layer.mask_logits == high).sum() >= layer.mask_logits.numel() // 2 for layer in layers.values())
    run(model)
    model.save_pretrained(tmp_path / "masked", max_shard_size="20KB")
    assert len([*(tmp_path / "masked").glob("*.safetensors")]) > 1
    again = auto.from_pretrained(tmp_path / "masked", dtype="auto").train()
    assert same_state(model, again)
    assert tied == (again.lm_head.mask_logits is getattr(again.model.embed_tokens, "mask_logits", None))
    assert all(torch.equal(mask, masks(again, 3)[name]) for name, mask in masks(model, 3).items())
    assert torch.equal(run(again), run(model))


def test_a_masked_body_gets_the_same_masks_under_another_head(transformers, hf, tmp_path):
    model = hf.get_masked_model(build(transformers, "llama"), hf.MaskConfig(sparsity=0.5))
    model.save_pretrained(tmp_path)
    for kind in ("AutoModel", "AutoModelForSequenceClassification"):
        other = getattr(transformers, kind).from_pretrained(tmp_path)
        found = {name.removeprefix("model."): mask for name, mask in masks(other, 5).items()}
        expected = {name.removeprefix("model."): mask for name, mask in masks(model, 5).items()}
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_an_estimator_and_a_temperature_that_changed_are_saved(llama, transformers, hf, tmp_path):
    model = hf.get_masked_model(llama, hf.MaskConfig(sparsity=0.5)).train()
    for layer in sp.nn.masked_layers(model).values():
        layer.estimator, layer.temperature = "concrete", 0.3
    model.save_pretrained(tmp_path / "whole")
    hf.save_masks(model, tmp_path / "masks")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").train()
    beside = hf.load_masks(build(transformers, "llama"), tmp_path / "masks").train()
    expected = run(model)
    assert torch.equal(run(again), expected) and torch.equal(run(beside), expected)
    layer.temperature = 0.5
    with pytest.raises(ValueError, match=r"0\.5"):
        model.save_pretrained(tmp_path / "mixed")


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_the_mode_says_what_is_trained(llama, hf, mode):
    model = hf.get_masked_model(llama, hf.MaskConfig(mode=mode))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    logits = {name for name, _ in model.named_parameters() if name.endswith("mask_logits")}
    assert trained == (logits if mode == "frozen" else {name for name, _ in model.named_parameters()})


@pytest.mark.parametrize(
    "options", [{"initial": "wanda", "scope": "row"}, {"initial": "sparsegpt"}, {"pattern": "2:4"}]
)
def test_the_start_is_the_cut_of_a_score(llama, hf, options):
    config = hf.MaskConfig(**({"sparsity": 0.5} | options if "pattern" not in options else options))
    name = config.initial
    scores = sp.scores.by_name(name)(llama, None, [(IDS, IDS), (IDS.flip(1), IDS)])
    rng = torch.get_rng_state()
    model = hf.get_masked_model(llama, config, calibration=BATCHES)
    assert torch.equal(rng, torch.get_rng_state())
    chosen = {name: scores[name] for name in sp.nn.masked_layers(model)}
    cut = sp.masks.from_scores(chosen, 0.5, config.scope, pattern="2:4" if config.n_of_m else None)
    for name, layer in sp.nn.masked_layers(model).items():
        assert torch.equal(torch.sigmoid(layer.mask_logits) > 0.5, cut[name])
        assert torch.sigmoid(layer.mask_logits).unique().tolist() == pytest.approx([0.05, 0.95])


@pytest.mark.parametrize("pattern, exclude", [("unstructured", None), ("2:4", ["*.mlp.*"])])
def test_the_start_is_the_mask_of_admm_and_the_weights_stay(llama, hf, pattern, exclude):
    before, other = {name: value.clone() for name, value in llama.state_dict().items()}, copy.deepcopy(llama)
    sparsity = (2, 4) if ":" in pattern else 0.5
    expected = sp.scores.admm_prune(other, [(IDS, IDS), (IDS.flip(1), IDS)], sparsity, exclude=exclude)
    options = {"sparsity": None if ":" in pattern else 0.5, "pattern": pattern, "excludes": exclude}
    model = hf.get_masked_model(llama, hf.MaskConfig(initial="admm", **options), calibration=BATCHES)
    layers = sp.nn.masked_layers(model)
    assert all(torch.equal(layer.gate(), expected[name]) for name, layer in layers.items()) and len(layers) > 3
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_score_of_the_users_own_starts_the_mask(transformers, hf):
    model = build(transformers, "gpt2")  # its weights are stored transposed
    scores = sp.scores.random(model, seed=3)
    model = hf.get_masked_model(model, hf.MaskConfig(sparsity=0.25, scope="row", excludes=["*.mlp.*"]), start=scores)
    for name, layer in sp.nn.masked_layers(model).items():
        assert torch.equal(layer.gate(), sp.masks.from_scores({name: scores[name].mT}, 0.25, "row")[name].mT)


@pytest.mark.parametrize(("name", "initial"), [("t5", "wanda"), ("falcon", "sparsegpt")])
def test_calibration_of_other_models(transformers, hf, name, initial):
    config = hf.MaskConfig(initial=initial, sparsity=0.5, scope="row")
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    model = build(transformers, name)
    if name == "t5":
        with pytest.raises(ValueError, match="decoder_input_ids"):
            hf.get_masked_model(model, config, calibration=[batch])
        batch["labels"] = IDS.flip(0)
    layers = sp.nn.masked_layers(hf.get_masked_model(model, config, calibration=[batch]))
    assert len(layers) > 6 and all(0.3 < layer.gate().float().mean() < 0.7 for layer in layers.values())


@pytest.mark.parametrize("prune", ["admm_prune", "sparsegpt_prune"])
def test_experts_that_are_not_pruned_are_named(transformers, prune):
    with pytest.warns(sp.nn.UnmaskedWeightsWarning, match=f"{prune}: .*experts"):
        getattr(sp.scores, prune)(build(transformers, "mixtral"), [(IDS, None)], 0.5)


@pytest.mark.parametrize("initial", ["magnitude", "sparsegpt"])
def test_n_of_m_on_gpt2(transformers, hf, tmp_path, initial):
    config = hf.MaskConfig(pattern="2:4", initial=initial)
    model = hf.get_masked_model(build(transformers, "gpt2"), config, calibration=BATCHES)
    run(model.train())
    model.save_pretrained(tmp_path / "masked")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "masked")
    assert same_state(again, model)
    following = masks(model, 3)
    assert all(torch.equal(mask, following[name]) for name, mask in masks(again, 3).items())
    hf.merge_and_unload(model)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        weight = model.get_submodule(f"transformer.h.0.{name}").weight  # [in, out]
        assert weight.unflatten(0, (-1, 4)).count_nonzero(1).eq(2).all()
    sp.export(model, tmp_path / "plain", pattern="2:4")
    with torch.no_grad():
        weight[:], weight[: len(weight) // 2] = 1, 0  # half are pruned, in whole groups
    with pytest.raises(ValueError, match=r"mlp\.c_proj\.weight .*2:4"):
        sp.export(model, tmp_path / "wrong", pattern="2:4")


def test_what_cannot_be_masked_is_refused_by_name(transformers, hf, llama):
    wanda = hf.MaskConfig(sparsity=0.5, initial="wanda")
    with pytest.raises(TypeError, match=r"get_masked_model: model"):
        hf.get_masked_model(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="calibration"):
        hf.get_masked_model(llama, wanda)
    padded = {"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}
    for batch, what in ((padded, "attention_mask"), ({"labels": IDS}, "input_ids")):
        with pytest.raises(ValueError, match=what):
            hf.get_masked_model(copy.deepcopy(llama), wanda, calibration=[batch])

    class Own(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    strange = copy.deepcopy(llama)
    strange.model.layers[0].mlp.up_proj = Own(32, 48, device="meta")
    with pytest.raises(ValueError, match=r"up_proj.*excludes") as refused:
        hf.get_masked_model(strange)
    assert "allow_subclasses" not in str(refused.value)
    with pytest.raises(ValueError, match="is not masked"):
        hf.merge_and_unload(llama)
    with pytest.raises(ValueError, match="masked already"):
        hf.get_masked_model(hf.get_masked_model(llama))
    for name, kind in (("gpt2", "GPT2LMHeadModel"), ("mamba", "MambaForCausalLM")):
        with pytest.raises(ValueError, match=f"heads.*{kind}"):
            hf.get_masked_model(build(transformers, name), hf.MaskConfig(pattern="heads"))


@pytest.mark.parametrize("name", ["llama", "mixtral", "mamba"])
def test_a_start_that_does_not_fit_leaves_the_model_as_it_was(transformers, hf, name):
    model = build(transformers, name)
    config = hf.MaskConfig(sparsity=0.5, excludes=["*A_log"] if name == "mamba" else None)
    before, state = [*model.named_modules()], copy.deepcopy(model.state_dict())
    first = next(name for name, weight in model.named_parameters() if "layers.0" in name and weight.dim() > 1)
    for start in ({}, {first: torch.ones(2, 2)}):
        with pytest.raises(ValueError, match=r"the start needs a score.*\.layers\.0"):
            hf.get_masked_model(model, config, start=start)
        assert [*model.named_modules()] == before and not hasattr(model.config, "quantization_config")
        assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("part", "dtype"),
    [
        ("mask_draw", torch.float32),
        ("mask_seed", torch.float64),
        ("mask_seed", torch.int32),
        ("mask_logits", torch.int8),
        ("mask_logits", torch.float8_e4m3fn),
    ],
)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_part_of_a_mask_of_another_dtype_is_refused(transformers, hf, tmp_path, name, part, dtype):
    hf.get_masked_model(build(transformers, name)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    key = [key for key in state if key.endswith(part)][-1]
    state[key] = state[key].to(dtype)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{key} must be stored as"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["mask_logits", "mask_seed", "mask_draw", "negative"])
def test_a_checkpoint_with_a_part_of_a_mask_missing_is_refused(transformers, hf, llama, tmp_path, damage):
    hf.get_masked_model(llama).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    layer = "model.layers.1.mlp.up_proj"
    if damage == "negative":
        state[f"{layer}.mask_draw"].fill_(-1)
    else:
        del state[f"{layer}.{damage}"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{'mask_draw' if damage == 'negative' else damage}.*{layer}"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_loaded_model_takes_a_dense_checkpoint_and_keeps_its_masks(transformers, hf, llama, tmp_path):
    dense = copy.deepcopy(llama.state_dict())
    hf.get_masked_model(llama, hf.MaskConfig(sparsity=0.5)).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    before = copy.deepcopy(model.state_dict())
    model.load_state_dict(dense)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("llama", "unstructured"), ("mixtral", "unstructured"), ("mixtral", "experts"), ("mamba", "unstructured")],
)
def test_gradient_checkpointing_gives_the_same_gradients(transformers, hf, name, pattern):
    dense, gradients = build(transformers, name), []
    config = hf.MaskConfig(pattern=pattern, excludes=["*.A_log"] if name == "mamba" else None)
    for checkpointing in (False, True):
        model = hf.get_masked_model(copy.deepcopy(dense), config).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        run(model).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is gradients[1][name] is None or torch.equal(gradient, gradients[1][name])


def test_a_masked_model_is_copied_generates_and_is_compiled(llama, hf):
    model = hf.get_masked_model(llama, hf.MaskConfig(sparsity=0.5))
    twin = copy.deepcopy(model)
    assert same_state(model, twin) and torch.equal(run(twin.train()), run(model.train()))
    assert not torch.equal(run(model), run(model))  # another mask
    model.eval()
    plain = hf.merge_and_unload(copy.deepcopy(model))
    options = {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
    assert torch.equal(model.generate(IDS, **options), plain.generate(IDS, **options))


def test_a_compiled_model_samples_the_masks_of_the_model(llama, hf):
    model = hf.get_masked_model(llama, hf.MaskConfig(sparsity=0.5, targets=["*.mlp.*"])).train()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager")
    for _ in range(2):
        expected, found = run(model), compiled(input_ids=IDS).logits
        assert torch.allclose(found, expected, atol=1e-5)
    expected.square().mean().backward()
    found.square().mean().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert a.grad is b.grad is None or torch.allclose(a.grad, b.grad, atol=1e-5)


def test_a_model_that_convert_masked_is_merged_and_its_masks_need_a_configuration(llama, hf, tmp_path):
    sp.convert(llama, exclude=["lm_head.weight"], keep_kept=0.6)
    with pytest.raises(ValueError, match="MaskConfig"):
        hf.save_masks(llama, tmp_path)
    assert not sp.nn.masked_layers(hf.merge_and_unload(llama, 0.5))


def test_a_merged_model_is_plain(transformers, hf, tmp_path):
    model = hf.get_masked_model(build(transformers, "qwen3"), hf.MaskConfig(sparsity=0.5, targets=["*"]))
    hf.merge_and_unload(model, sparsity=0.25, scope="layer").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in content and "sparsity_config" not in content
    state = load_file(tmp_path / "model.safetensors")
    assert not [name for name in state if "mask" in name]
    for name, weight in state.items():
        if weight.dim() == 2:
            assert (weight == 0).float().mean() == pytest.approx(0.25, abs=0.01), name
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(run(again), run(model)) and again.lm_head.weight is again.model.embed_tokens.weight
    hf.get_masked_model(model)  # once more
