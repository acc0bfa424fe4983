"""The benchmark of sparse weights checks every result, and writes its page from what it measured."""

from __future__ import annotations

import pytest
import torch

from bench import sparse, sparse_contenders
from bench.sparse_page import page

WORK = ("dense", "ONNX Runtime", "CSR", "BSR", "semi-structured", "SparseLinear")  # compiling takes long


@pytest.fixture
def rows():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    layers = [sparse.Layer((64, 128), pattern, s, (1, 3), WORK) for pattern, s in (("blocks", 0.5), ("2:4", 0.5))]
    with torch.inference_mode():
        return [row for layer in layers for row in sparse.measure(layer, 0.0)]


def test_the_page_holds_what_was_measured(rows):
    assert [row["sparsity"] for row in rows[2:]] == [0.5, 0.5] and {row["batch"] for row in rows} == {1, 3}
    if not torch.cuda.is_available():
        assert "CUDA" in rows[0]["missing"]["semi-structured"]
    groups = {name: rows for name in ("one_thread", "all_threads", "small", "few_zeros", "patterns")}
    about = {
        "versions": {"torch": "9"},
        "commit": "abc",
        "processor": "P",
        "cores": 2,
        "load": 0.1,
        "instruction_set": "scalar",
    }
    sizes = dict.fromkeys(("dense", "sparse", "zip of dense", "zip of sparse"), 1000)
    files = [{"dtype": "float32", "pattern": "2:4", "sparsity": 0.5, "bytes": sizes}]
    text = page(about, groups, files)
    assert text.count("| 64 x 128 | blocks |") == 5 * 2 and "| float32 | 2:4 | 50 % | 1,000 | 1.000 |" in text


def test_a_wrong_result_ends_the_benchmark(monkeypatch):
    monkeypatch.setitem(sparse_contenders.CONTENDERS, "CSR", lambda layer: lambda x: layer(x) * 1.001)
    with pytest.raises(ArithmeticError, match="CSR"):
        sparse.measure(sparse.Layer((16, 32), "unstructured", 0.5, (2,), ("dense", "CSR")), 0.0)


def test_patterns():
    weight = sparse.weight_of((32, 64), "2:4", 0.5)
    assert ((weight.view(32, 16, 4) != 0).sum(-1) == 2).all()
    blocks = sparse.weight_of((64, 64), "blocks", 0.5).view(4, 16, 4, 16).ne(0).sum((1, 3))
    assert {*blocks.flatten().tolist()} == {0, 256}
