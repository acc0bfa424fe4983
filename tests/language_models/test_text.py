"""Text, tokenisers, blocks, small models and their perplexity."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from stochprune import language_models as lm
from stochprune.data import Batches
from stochprune.language_models.text import blocks, split_text


def test_a_folder_is_its_text_files_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one ")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert lm.read_text(tmp_path) == "one two" and lm.read_text(tmp_path / "b.txt") == "two"


@pytest.mark.parametrize(
    ("content", "words"), [({}, "no .txt"), ({"a.txt": b" \n"}, "empty"), ({"a.txt": b"ok\xff"}, "byte 2")]
)
def test_bad_files_are_named(tmp_path, content, words):
    for name, written in content.items():
        (tmp_path / name).write_bytes(written)
    with pytest.raises(ValueError, match=words):
        lm.read_text(tmp_path)


def test_a_tokenizer_reads_every_text_back_and_is_the_same_in_another_process(text, tokenizer):
    strange = "the ünseen wörd \u4e2d\n"
    assert tokenizer.decode(tokenizer(strange)["input_ids"]) == strange
    code = (
        "import sys, hashlib; from stochprune.language_models import train_tokenizer\n"
        "print(hashlib.sha1(train_tokenizer(sys.stdin.read(), 300).backend_tokenizer.to_str().encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True)
    import hashlib

    assert other.stdout.strip() == hashlib.sha1(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def test_blocks_have_the_next_token_at_every_position(data, text, tokenizer):
    x, y = blocks(torch.arange(12), 5)
    assert x.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]] and y.equal(x + 1)
    ids = tokenizer(split_text(text, 0.2)[1])["input_ids"]
    assert data.test_x.flatten().tolist() == ids[: data.test_x.numel()]
    assert data.test_y.flatten().tolist() == ids[1 : data.test_x.numel() + 1]


def test_a_short_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match="held-out part has"):
        lm.text_data("the cat sat on a mat " * 10, tokenizer, context=16, held_out=0.05)


def test_parts_of_a_pass_see_every_block_once():
    x = torch.arange(12)
    whole = Batches(x, x, 2, seed=3)
    parts = lm.Passages(Batches(x, x, 2, seed=3), 3)
    seen = []
    for epoch in range(6):
        parts.set_epoch(epoch)
        seen += [value for batch, _ in parts for value in batch.tolist()]
    assert sorted(seen[:12]) == list(range(12)) and seen[:12] == torch.cat([b for b, _ in whole]).tolist()
    assert sorted(seen[12:]) == list(range(12)) and seen[12:] != seen[:12]


def test_a_small_llama_depends_on_its_seed_alone(model):
    state = torch.random.get_rng_state()
    shape = lm.LlamaShape(width=16, layers=2, heads=2, hidden=24)
    same, other = (lm.small_llama(shape, 300, 16, seed) for seed in (0, 1))
    assert torch.random.get_rng_state().equal(state)
    for (name, a), b, c in zip(model.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert a.equal(b) and (a.dim() < 2 or not a.equal(c)), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_perplexity_is_that_of_transformers(model, data):
    block = torch.cat([data.test_x[:3], data.test_y[:3, -1:]], dim=1)
    expected = model(block, labels=block).loss.item()
    assert lm.token_loss(model, data.test_x[:3], data.test_y[:3], batch_size=2) == pytest.approx(expected, rel=1e-5)
    assert lm.perplexity(model, data.test_x[:3], data.test_y[:3]) == pytest.approx(math.exp(expected), rel=1e-4)
    model.train().model.norm.eval()
    lm.token_loss(model, data.test_x[:1], data.test_y[:1])
    assert model.training and model.lm_head.training and not model.model.norm.training
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="nan"):
        lm.token_loss(model, data.test_x, data.test_y)


def test_distillation_from_the_same_model_is_its_loss_without_divergence(model, data):
    teacher = lm.small_llama(lm.LlamaShape(width=16, layers=2, heads=2, hidden=24), 300, 16, seed=0)
    batch = data.train_x[:2], data.train_y[:2]
    plain = lm.next_token_loss(model(batch[0]), batch[1]).item()
    assert lm.distilled(teacher, 0.25)(model, batch).item() == pytest.approx(0.75 * plain, rel=1e-5)
    with torch.no_grad():
        teacher.model.norm.weight.mul_(3)
    log_p, log_q = (m(batch[0]).logits.log_softmax(-1) for m in (teacher, model))
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert lm.distilled(teacher, 1.0)(model, batch).item() == pytest.approx(divergence, rel=1e-4)
