"""The Python of every page of docs/ runs, block after block, and prints what its comments say.

A title in the first line of a block marks what it needs. ``needs a GPU`` or ``needs torchvision``: the block is skipped
without it. ``with your model, loader``: names that the reader has; here they are those of ``_reader``.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import stochprune as sp
from stochprune import language_models as lm
from stochprune.nn import registry
from tests.test_readme import BLOCK, ROOT

DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md")) if "```python" in path.read_text()}
ELSEWHERE = {
    "distributed.md": "tests/distributed/page.py",
    "transformers.md": "tests/integrations/test_transformers_page.py",
}
EXPECTED = re.compile(r"^ *print\(.*\)  # ([\d\[{('].*|tensor\(.*)$")


def _installed(package: str) -> bool:
    return torch.cuda.is_available() if package == "a GPU" else importlib.util.find_spec(package) is not None


def _imports(code: str) -> set[str]:
    """Return the packages that a block imports."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def _reader(names: list[str]) -> dict[str, Any]:
    """Return what a reader brings by these names: a small network, its data and a mask, or a language model."""
    if {"tokenizer", "DIR"} & {*names}:
        return _language_model()
    x = (torch.arange(512 * 16) ** 2 / 7).sin().view(512, 1, 4, 4)
    y = x[:, 0, 0, :3].argmax(dim=1)
    loader = sp.data.Batches(x, y, batch_size=32, seed=0)
    model = sp.models.build("lenet_300_100", (1, 4, 4), 3, seed=0)
    masks = sp.masks.from_scores(sp.scores.magnitude(model), 0.5)
    return {"model": model, "batches": loader, "loader": loader, "masks": masks}


def _language_model() -> dict[str, Any]:
    """Return a tiny language model and its tokenizer; write them to DIR and a text to TEXT."""
    text = "".join(f"{i} and {i * i % 7}\n" for i in range(900))
    tokenizer = lm.train_tokenizer(text, 300)
    model = lm.small_llama(lm.LlamaShape(width=8, layers=1, heads=2, hidden=12), len(tokenizer), 256, 0)
    Path("TEXT").write_text(text)
    for part in (model, tokenizer):
        part.save_pretrained("DIR")
    return {"model": model, "tokenizer": tokenizer, "DIR": "DIR", "TEXT": "TEXT"}


def run(page: Path) -> tuple[dict[str, Any], list[str]]:
    """Run the blocks of a page one after the other; return the names they define and what they print."""
    names: dict[str, Any] = {}
    printed: list[str] = []
    ran = False
    for language, title, code in BLOCK.findall(page.read_text()):
        needs = [part.strip() for part in title.removeprefix("needs ").split(",")] if title.startswith("needs ") else []
        if language != "python" or not all(map(_installed, {*needs, *_imports(code)})):
            continue
        if title.startswith("with your "):
            wanted = title.removeprefix("with your ").split(", ")
            brought = _reader(wanted)
            names |= {name: brought[name] for name in wanted} | {"sp": sp}
        elif title and not needs:
            raise AssertionError(f"{page.name}: unknown title {title!r}")
        lines = code.splitlines()

        def show(*values: Any, lines: list[str] = lines) -> None:
            text = " ".join(map(str, values))
            printed.append(text)
            expected = EXPECTED.match(lines[inspect.currentframe().f_back.f_lineno - 1])
            assert not expected or text == expected[1], (page.name, text)

        names["print"] = show
        exec(compile(code, str(page), "exec"), names)
        ran = True
    if not ran:
        pytest.skip("the packages of this page are missing")
    return names, printed


@pytest.mark.parametrize("name", [name for name in PAGES if name not in ELSEWHERE])
def test_the_python_of_the_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_MASKED", dict(registry._MASKED))
    with torch.random.fork_rng():  # a reader's tensors may come from torch's own generator
        names, printed = run(PAGES[name])
    CHECKS.get(name, lambda *_: None)(names, printed, tmp_path)


def test_the_other_pages_have_a_test_of_their_own():
    for name, test in ELSEWHERE.items():
        assert name in (ROOT / test).read_text()


def _layers(names: dict[str, Any], printed: list[str], folder: Path) -> None:
    assert type(names["model"][0]) is names["Experts"] and not names["model"][0].up.all()
    assert registry.masked_type(names["Scaled"](2, 2, device="meta")) is names["MaskedScaled"]


def _lora(names: dict[str, Any], printed: list[str], folder: Path) -> None:
    zeros = [module.weight == 0 for module in names["model"].modules() if hasattr(module, "weight")]
    assert sum(int(layer.sum()) for layer in zeros) == round(0.9 * sum(layer.numel() for layer in zeros))


def _own_loop(names: dict[str, Any], printed: list[str], folder: Path) -> None:
    assert printed[-1].startswith("0.9")
    assert {path.name for path in (folder / "logs").iterdir()} == {"mask.csv", "weights.csv"}


def _training(names: dict[str, Any], printed: list[str], folder: Path) -> None:
    assert any(re.match(r"0\.4\d of the weights", line) for line in printed)


CHECKS = {"layers.md": _layers, "lora.md": _lora, "own-loop.md": _own_loop, "transformers-training.md": _training}


def test_the_contract_of_the_page_is_that_of_the_published_vectors():
    names, _ = run(DOCS / "contract.md")
    vectors = json.loads((ROOT / "tests" / "mask_vectors.json").read_text())
    words = lambda values: [int(value, 16) for value in values]  # noqa: E731
    for case in vectors["philox4x32"]:
        found = names["philox4x32"](words(case["counter"]), words(case["key"]), case["rounds"])
        assert list(found) == words(case["words"])
    for case in vectors["uniform16"]:
        at = {name: case[name] for name in ("seed", "draw", "stream")}
        n, k = case["row_offset"], case["col_offset"]
        for i, row in enumerate(case["values"]):
            assert [names["uniform16"](n + i, k + j, **at) for j in range(case["cols"])] == row
    case = vectors["keep"]
    at = {name: case[name] for name in ("seed", "draw", "stream")}
    rows = [[names["keep"](520 * n, n, k, **at) for k in range(case["cols"])] for n in range(case["rows"])]
    assert [sum(row) for row in rows] == case["kept_per_row"]
    assert {name: names["stream"](name) for name in vectors["stream"]} == vectors["stream"]
    logits = torch.linspace(-12, 12, 999, dtype=torch.float64)
    assert [names["threshold"](x) for x in logits.tolist()] == sp.rng.threshold_from_logits(logits).tolist()
