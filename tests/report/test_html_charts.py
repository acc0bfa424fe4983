"""Charts and tables of the HTML page, from records alone: ticks, differences, and what is cut."""

from __future__ import annotations

import re

import pytest

from stochprune.report.html import read_source, view_of
from stochprune.report.html.charts import MOST_NAMES, MOST_POINTS, intervals, lines, quantity
from stochprune.report.html.curves import history_figure
from stochprune.report.html.parts import Figure, Table
from tests.report.html_runs import write


@pytest.mark.parametrize("epochs", [2, 3, 7])
def test_ticks_of_epochs_are_different_whole_numbers(epochs):
    vl_convert = pytest.importorskip("vl_convert")
    history = [{"epoch": i + 1, "loss": 0.5} for i in range(epochs)]
    (panel,) = history_figure("t", "a", {"s": history})[0].panels
    drawn = vl_convert.vegalite_to_svg({**panel.spec, "width": 300})
    ticks = re.findall(r">([0-9]+)</text>", drawn.partition(">epoch<")[0])
    assert len(ticks) > 1 and len(ticks) == len(set(ticks))


def certificates(seeds):
    """Rows of a study of certificates: the learnt posterior is better by 2, 3, ... points than the prior."""
    about = {"data": "digits", "model": "mlp", "score": "half", "sparsity": 0.0}
    bounds = {"masks, prior": lambda seed: 30.0, "masks, quadratic": lambda seed: 28.0 - seed}
    return [
        {
            **about,
            "seed": seed,
            "arm": arm,
            "error": bound(seed) - 5,
            "bound": bound(seed),
            "mean_loss": 20.0,
            "kl": 1.0,
        }
        for seed in range(seeds)
        for arm, bound in bounds.items()
    ]


@pytest.mark.parametrize("seeds", [1, 3])
def test_certificates_of_a_study_have_differences_to_the_prior(tmp_path, seeds):
    view = view_of(read_source(write(tmp_path / "results.json", {"rows": certificates(seeds)})))
    (figure,) = (figure for figure in view.figures if "against the prior" in figure.title)
    rows = {row[2]: row[3:] for row in figure.table.rows}
    mean, low, high, count = rows["certificate"]
    assert mean == pytest.approx(-2 - (seeds - 1) / 2) and count == seeds
    assert (low, high) == (None, None) if seeds == 1 else low < mean < high
    assert rows["mean loss of the draws"][0] == 0 and rows["test error"][0] == mean
    assert not [figure for figure in view.figures if figure.title == "Errors by sparsity"]


def test_charts_say_that_they_are_cut():
    x, y = quantity("x", "x"), quantity("y", "y")
    long = [{"series": "a", "x": i, "y": 1.0} for i in range(MOST_POINTS + 1)]
    assert "title" not in lines(long[1:], x, y)
    cut = lines(long, x, y)
    assert "5,000 of 5,001" in cut["title"] and len(cut["data"]["values"]) == MOST_POINTS
    names = [{"label": str(i), "series": "a", "value": 0.0, "low": None, "high": None} for i in range(MOST_NAMES + 1)]
    assert "80 of 81" in intervals(names, "t")["title"]


def test_long_tables_and_figures_are_cut(monkeypatch):
    table = Table("t", ("a",), [[i] for i in range(3000)])
    assert len(table.shown) == 2000 and table.numeric() == [True]
    assert len(Figure("f", "", panels=[None] * 100).shown) == 36
