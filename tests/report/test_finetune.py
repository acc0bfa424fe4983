"""Summary, table and picture of a study of fine-tuning."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stochprune import report
from stochprune.report import finetune_table, plot_certificates, plot_finetune, summarize
from stochprune.report.html.finetune import finetune_view
from stochprune.report.html.sources import Source
from stochprune.report.summary import Spread

ARMS = ("pruned", "retrained", "stochastic", "ensemble", "thresholded", "finetuned", "shuffled")


@pytest.fixture
def results():
    errors = {("snip", 0.9, 0): (3.0, 2.0), ("snip", 0.9, 1): (5.0, 3.0), ("snip", 0.98, 0): (4.0, 6.0)}
    return {
        "configuration": {"data": "digits", "model": "mlp", "seeds": 2, "retrain_epochs": 3, "finetune": {"epochs": 4}},
        "dense": [{"seed": 0, "error": 1.0}, {"seed": 1, "error": 2.0}],
        "cells": [
            {
                "score": score,
                "sparsity": sparsity,
                "seed": seed,
                "errors": {**dict.fromkeys(ARMS, 9.0), "retrained": retrained, "finetuned": finetuned},
            }
            for (score, sparsity, seed), (retrained, finetuned) in errors.items()
        ],
    }


def test_spread():
    assert Spread.of([1.0, 3.0]) == Spread(2.0, pytest.approx(2**0.5))
    assert Spread.of([4.0]) == Spread(4.0, None)


def test_summary_pairs_by_seed(results):
    first, second = summarize(results)
    assert (first.score, first.sparsity, first.seeds, first.wins) == ("snip", 0.9, 2, 2)
    assert first.gain == Spread(1.5, pytest.approx(0.5**0.5))
    assert first.errors["retrained"].mean == 4.0
    assert (second.wins, second.gain.mean) == (0, -2.0)


def test_table_fits_a_terminal_and_shows_all(results):
    out = io.StringIO()
    Console(file=out, width=80).print(finetune_table(results))
    text = out.getvalue()
    assert "…" not in text
    for part in ("snip", "90%", "98%", "4.00", "2.50", "+1.50", "2/2", "-2.00", "0/1"):
        assert part in text, part


def test_no_gain_is_reported_where_the_baseline_hardly_trains(results):
    for cell in results["cells"]:
        if cell["sparsity"] == 0.98:
            cell["errors"] |= {"retrained": 80.0, "finetuned": 5.0}
    first, second = summarize(results)
    assert first.gain is not None and second.gain is None
    out = io.StringIO()
    Console(file=out, width=80).print(finetune_table(results))
    assert "+75" not in out.getvalue() and "0/1" not in out.getvalue() and "80.0" in out.getvalue()


@pytest.fixture
def with_failures(results):
    """The second seed at 90 per cent lacks its fine-tuned errors, and the cell at 98 all errors."""
    _, second, third = results["cells"]
    second["errors"] |= {"stochastic": None, "ensemble": None, "thresholded": None, "finetuned": None, "shuffled": None}
    third["errors"] = dict.fromkeys(ARMS)
    second["failed"], third["failed"] = "the loss is nan", "no weight in [fc2]"
    return results


def test_failed_cells_are_left_out_of_means_and_named(with_failures):
    first, second = summarize(with_failures)
    assert (first.seeds, first.wins, first.gain) == (1, 1, Spread(1.0, None))
    assert first.errors["retrained"].mean == 4.0 and first.errors["finetuned"] == Spread(2.0, None)
    assert (second.seeds, second.gain, set(second.errors.values())) == (0, None, {None})
    out = io.StringIO()
    Console(file=out, width=80).print(finetune_table(with_failures))
    text = " ".join(out.getvalue().split())
    assert "snip, 90 %, seed 1: the loss is nan" in text and "snip, 98 %, seed 0: no weight in [fc2]" in text
    assert "98% - - - - - - - -" in text


def test_a_picture_of_failed_cells(with_failures, tmp_path):
    plot_finetune(with_failures, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_a_page_of_failed_cells(with_failures, tmp_path):
    for cell in with_failures["cells"]:
        whole = "failed" not in cell
        cell["density"] = {"fc1": [0.5, 0.4]} if whole else {}
        cell["history"] = [{"epoch": n, "loss": 1.0} for n in (1, 2)] if whole else []
    view = finetune_view(Source(tmp_path / "results.json", None, with_failures))
    assert any("seed 1: the loss is nan" in note for note in view.notes)
    by_title = {figure.title: figure for figure in view.figures}
    (gain, _) = by_title["Mask fine-tuning against its controls"].table.rows
    assert gain[:3] == ["snip, 90 % pruned", "fine-tuned - score's mask", -1.0]
    assert {"Learning", "Density by layer", "Errors by sparsity"} <= by_title.keys()


def test_one_seed_has_no_deviation(results):
    results["cells"] = [cell for cell in results["cells"] if cell["seed"] == 0]
    results["dense"], results["configuration"]["seeds"] = results["dense"][:1], 1
    out = io.StringIO()
    Console(file=out, width=80).print(finetune_table(results))
    assert "±" not in out.getvalue()


def test_picture(results, tmp_path):
    plot_finetune(results, tmp_path / "results.png")
    content = (tmp_path / "results.png").read_bytes()
    assert content.startswith(b"\x89PNG") and 10_000 < len(content) < 150_000


def test_former_names_warn_and_work():
    for name, now in {"draw": plot_finetune, "table": finetune_table, "draw_certificates": plot_certificates}.items():
        with pytest.warns(DeprecationWarning, match=now.__name__):
            assert getattr(report, name) is now
    with pytest.raises(AttributeError, match="sketch"):
        _ = report.sketch
