"""``stochprune bench``."""

from __future__ import annotations

import re

import pytest
import torch
from typer.testing import CliRunner, Result

from stochprune.cli import app

TINY = ("--rows", "24", "--cols", "40", "--tokens", "1,8", "--seconds", "0.01")


def bench(*options: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["bench", *options])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_for_each_number_of_tokens(dtype):
    result = bench(*TINY, "--device", "cpu", "--dtype", dtype)
    assert result.exit_code == 0, result.output
    assert f"[24, 40] {dtype} on cpu" in result.output
    rows = [line.replace("│", " ").split() for line in result.output.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["1", "8"]
    for _, dense, masked, tax, *_ in rows:
        assert float(dense) > 0 and float(masked) > 0 and float(tax) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokens", "1,many"), "tokens.*got '1,many'"),
        (("--tokens", "0"), "tokens.*got '0'"),
        pytest.param(
            ("--calibrate",),
            "calibrat.*GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
    ],
)
def test_errors_are_one_line(options, message):
    result = bench(*TINY, *options)
    assert result.exit_code == 1 and re.search(f"error: {message}", result.output) and "Traceback" not in result.output
