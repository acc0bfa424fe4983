"""Commands with nonsense options and files, through typer's runner."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import typer
from typer.testing import CliRunner, Result

from stochprune.cli import app


def commands(group: click.Group, path: str = "") -> dict[str, click.Command]:
    """All commands by their words; a group that does something by itself is one, too."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[path + name] = command
        if isinstance(command, click.Group):
            found |= commands(command, f"{path}{name} ")
    return found


COMMANDS = commands(typer.main.get_command(app))  # type: ignore[arg-type]
BASE: dict[str, list[str]] = {
    # A valid configuration ends soon, too: no data are there, or the last check refuses it.
    "finetune": ["--data", "mnist", "--data-dir", "empty"],
    "finetune-lm": ["--model", "empty", "--data", "mine.yaml"],
    "certify": ["--data", "mnist", "--data-dir", "empty"],
    "bounds": ["--data", "mnist", "--data-dir", "empty"],
    "study": ["mine.yaml", "--data-dir", "empty"],
    "linear-lab": ["--features", "17"],
    "bench": ["--rows", "4", "--cols", "4", "--tokens", "1", "--seconds", "0.01", "--device", "cpu"],
    "bench run": ["ops", "--small", "--only", "no such case"],
    "plan": ["empty"],
    "backends": [],
    "doctor": ["--json"],
    "report": ["empty"],
    "bench compare": ["mine.yaml", "empty"],
}
NONSENSE = [
    "",
    " ",
    "x",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1.5",
    "1e400",
    "9" * 400,
    "true",
    "None",
    "a,b,,",
    ",",
    "0,0",
]
NONSENSE += ["../../x", "/dev/null", "/proc/1/mem", "nowhere/at/all", "binary", "values.json", "cpu:99"]
NONSENSE += ["cuda", "meta", "é", "[red]", "[/]", "-", "--", "%s", "\udc80"]
STUDY = """
title: T
job: initialisation
data: [mnist]
models: [lenet_300_100]
seeds: 2
grid: [{scores: [snip, {prospr: {steps: 2}}], sparsities: [0.5], ablations: [none]}]
settings: {per_class: 3, weights: {epochs: 1, lr: 1e-3}}
"""
WORDS = [
    "!!python/object:os.system",
    "&a [*a]",
    "*a",
    "[",
    "}",
    "on",
    "1.5",
    "[1.5]",
    "null",
    "~",
    "{}",
    "-1",
    ".nan",
    ".inf",
]
WORDS += [
    "2026-01-01",
    "!!binary x",
    "? a",
    "\t",
    "\x00",
    "0x10",
    "1_000",
    "9" * 400,
    "../../x",
    "'",
    "<<: *a",
    "1e400",
]


def drawn(numbers: random.Random) -> tuple[Callable[[], Result], str]:
    """A command with one or two options of nonsense, or a study whose file is damaged; and its text."""
    name = numbers.choice(sorted(COMMANDS))
    arguments, text = list(BASE[name]), STUDY
    options = [o for p in COMMANDS[name].params for o in p.opts if o.startswith("--") and not getattr(p, "is_flag", 0)]
    if name == "study" and numbers.random() < 0.7:
        text = damaged(numbers)
    for _ in range(numbers.choice((1, 1, 2)) if options and text == STUDY else 0):
        arguments += [numbers.choice(options), numbers.choice(NONSENSE)]

    def call() -> Result:
        Path("mine.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
        return CliRunner().invoke(app, [*name.split(), *arguments])

    shown = [argument[:60] for argument in arguments]
    return call, f"stochprune {name} {shown}" + (f" {text!r}" if text != STUDY else "")


def damaged(numbers: random.Random) -> str:
    lines = STUDY.strip().split("\n")
    place = numbers.randrange(len(lines))
    key, _, value = lines[place].partition(":")
    change = numbers.randrange(4)
    if change == 0:
        lines[place] = f"{key}: {numbers.choice(WORDS)}"
    elif change == 1:
        lines[place] = f"{numbers.choice(WORDS)}: {value}"
    elif change == 2:
        del lines[place]
    else:
        at = numbers.randrange(len(lines[place]))
        lines[place] = lines[place][:at] + numbers.choice(WORDS) + lines[place][at + 1 :]
    return "\n".join(lines) + "\n"


def fault(result: Any) -> str:
    """Return the fault in how a command ended, or nothing: it may succeed, or report an error in one line."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {str(result.exception)[:200]}"
    if result.exit_code not in (0, 1, 2) or "Traceback" in result.output:
        return f"status {result.exit_code}: {result.output[-200:]}"
    if result.exit_code == 1 and sum(line.startswith("error:") for line in result.stderr.splitlines()) != 1:
        return f"not one line of error: {result.output[-200:]!r}"
    unclear = ("not supported between", "codec can't decode", "[Errno", "has no attribute", "invalid literal")
    found = [part for part in unclear if part in result.output]
    return f"unclear: {result.output[-200:]!r}" if found else ""
