"""The README's Python runs as it stands, and every option in the documents' commands exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from stochprune.cli import app

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]*)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks(path: Path, language: str) -> list[str]:
    return [code for kind, _, code in BLOCK.findall(path.read_text()) if kind == language]


def commands() -> list[str]:
    """The ``stochprune`` lines of the README and the guides, with their comments and line breaks removed."""
    texts = [code for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")) for code in blocks(path, "sh")]
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    return sorted({line.split("#")[0].strip() for line in lines if line.startswith("stochprune ")})


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with torch.random.fork_rng():  # a reader's tensors may come from torch's own generator
        for code in blocks(ROOT / "README.md", "python"):
            exec(code, names)
    model, y = names["model"], names["y"]
    printed, report = capsys.readouterr().out.splitlines(), blocks(ROOT / "README.md", "text")[0].splitlines()
    assert [line for line in printed if " x " in line] == [line for line in report if " x " in line]
    assert names["error"](names["smaller"]) < 8
    pruned = [module.weight == 0 for module in model.modules() if type(module) is torch.nn.Linear]
    assert sum(int(zeros.sum()) for zeros in pruned) == round(0.95 * sum(zeros.numel() for zeros in pruned))
    assert y.shape == (8, 10) and y.isfinite().all()


@pytest.mark.parametrize("line", commands())
def test_options_in_the_documents_exist(line):
    _, command, *arguments = shlex.split(line)
    known = typer.main.get_command(app).commands[command]
    while arguments and arguments[0] in getattr(known, "commands", ()):
        known = known.commands[arguments.pop(0)]
    options = {name for parameter in known.params for name in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= options
