"""``stochprune plan``: its table, its advice, and the plan beside the memory of real steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench.plan import compare
from stochprune.cli import app
from tests.nn.conftest import transformers as transformers  # the fixture

TINY = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 128}
MODELS = {  # and how many of their weights are masked
    "llama": ({**TINY, "intermediate_size": 48}, 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)),
    "qwen3_moe": ({**TINY, **EXPERTS, "intermediate_size": 48}, 2 * (3 * 4 * 16 * 32 + 2 * 32 * 32 + 2 * 16 * 32)),
    "gpt2": (GPT2, 2 * 12 * 32 * 32),
}


def plan(folder: Path, *options: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["plan", str(folder), *options])


def write(folder: Path, name: str, values: dict[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": name, **values}))
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_the_table(name, tmp_path, transformers):
    values, masked = MODELS[name]
    result = plan(write(tmp_path, name, values), "--sequence", "64", "--checkpointing")
    assert result.exit_code == 0, result.output
    rows = {line.split()[1]: line.replace("│", " ").split() for line in result.output.splitlines() if "│" in line}
    assert rows["state"][2] == "8.00" and rows["logits"][2] == "4.00"
    assert f"{masked:,}" in result.output
    assert float(rows["activations"][2]) > 0 and float(rows["peak"][2]) > 14


def test_activations_grow_with_the_batch_and_less_with_checkpointing(tmp_path, transformers):
    from stochprune.language_models.model_sizes import LanguageModelSizes
    from stochprune.training.memory_plan import MemoryConfig

    sizes = LanguageModelSizes(write(tmp_path, "llama", {**TINY, "intermediate_size": 48, "num_hidden_layers": 6}))
    one, two, recomputed, wide = (
        sizes.activations(MemoryConfig(sequence=64, **options))
        for options in ({}, {"batch_size": 2}, {"checkpointing": True}, {"weights": "fp32"})
    )
    assert 1.8 * one < two < 2.01 * one and recomputed < one / 2 and one < wide < 2 * one


def test_several_gpus(tmp_path, transformers):
    folder = write(tmp_path, "llama", {**TINY, "intermediate_size": 48})
    for parallel, collectives in (("ddp", 1), ("fsdp", 2), ("tp", 1)):
        result = plan(folder, "--sequence", "16", "--ranks", "2,8", "--parallel", parallel)
        assert result.exit_code == 0, result.output
        rows = [line.replace("│", " ").split() for line in result.output.splitlines() if "│" in line]
        assert [row[0] for row in rows] == ["2", "8"]
        assert [len(row) for row in rows] == [4 + collectives] * 2
        assert [row[-1] for row in rows] == (["1", "1"] if parallel == "tp" else ["2", "8"])


def test_sharding_divides_the_memory_and_what_is_sent_grows_to_a_limit(tmp_path, transformers):
    from stochprune.language_models.model_sizes import LanguageModelSizes
    from stochprune.training.memory_plan import MemoryConfig
    from stochprune.training.scaling import scaling_plan

    sizes = LanguageModelSizes(write(tmp_path, "llama", {**TINY, "intermediate_size": 48, "num_hidden_layers": 20}))
    config = MemoryConfig(sequence=8, checkpointing=True)
    plans = {ranks: scaling_plan(sizes, config, ranks=ranks, parallel="fsdp") for ranks in (1, 2, 8, 1000)}
    assert plans[2].memory.state == plans[1].memory.state / 2 and plans[8].memory.peak < plans[2].memory.peak
    sent = {ranks: sum(found.sent.values()) for ranks, found in plans.items()}
    assert sent[1] == 0 and sent[2] < sent[8] < sent[1000] < 2.01 * sent[2]
    with pytest.raises(ValueError, match="in_backward"):
        scaling_plan(sizes, MemoryConfig(in_backward=True), ranks=2, parallel="fsdp")


@pytest.mark.parametrize("given", ["0", "2,2", "two", ""])
def test_a_wrong_number_of_gpus_is_refused(tmp_path, given):
    folder = write(tmp_path, "llama", {**TINY, "intermediate_size": 48})
    assert "ranks" in plan(folder, "--ranks", given).output


def test_advice(tmp_path, transformers):
    folder = write(tmp_path, "llama", {**TINY, "intermediate_size": 48})
    result = plan(folder / "config.json", "--sequence", "16", "--limit", "0.0002")
    assert result.exit_code == 1 and "limit of 0.0002 GB; it fits with --" in result.output
    assert "no change" in plan(folder, "--limit", "1e-9").output
    assert plan(folder, "--sequence", "16", "--limit", "1").exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json"),
        ("{", "config"),
        ('{"model_type": "unheard_of"}', "unheard_of"),
        ('{"model_type": "vit"}', "ViT"),
        ('{"model_type": "llama", "hidden_size": "many"}', "hidden_size"),
        ('{"model_type": "llama", "hidden_size": 100000000000, "num_attention_heads": 1}', "100000000000"),
        ('{"model_type": "llama", "num_hidden_layers": 0}', "no linear layer"),
    ],
)
def test_refusals(content, message, tmp_path, transformers):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    result = plan(tmp_path)
    assert result.exit_code == 1 and message in result.output, result.output


@pytest.mark.slow
def test_the_plan_beside_real_steps(transformers):
    """Of 6 million weights, where a few megabytes of other memory are a few per cent."""
    row = compare("bf16", 6, 2)
    assert 5e6 < row["masked"] < 7e6
    assert row["measured"] == pytest.approx(row["plan"], rel=0.2)
