"""The picture of a study of initialisations."""

from __future__ import annotations

import pytest
from matplotlib.axes import Axes

from stochprune.report import plot_initialisation


def rows(scores, arms, models=("m",), error=5.0):
    found = [
        {"data": "d", "model": model, "score": score, "sparsity": sparsity, "arm": arm, "seed": seed, "error": error}
        for model in models
        for score in scores
        for sparsity in (0.5, 0.9)
        for arm in (arms if score != "random" else ("none",))
        for seed in (0, 1)
    ]
    dense = {"data": "d", "model": models[0], "score": "dense", "sparsity": 0.0, "arm": "none", "seed": 0, "error": 2.0}
    return [*found, dense]


@pytest.mark.parametrize(
    ("found", "titles", "labels"),
    [
        (rows(["a", "random"], ["none"]), ["m, d"], ["dense", "a", "random"]),
        (
            rows(["a", "b", "random"], ["none", "shuffle"]),
            ["a", "b"],
            ["dense", "as scored", "shuffle", "random mask"],
        ),
        (rows(["a"], ["none", "shuffle"], ["m", "n"]), ["a, m, d", "a, n, d"], ["dense", "as scored", "shuffle"]),
    ],
)
def test_panels_and_lines(tmp_path, monkeypatch, found, titles, labels):
    seen = []
    original = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **o: (seen.append((self, text)), original(self, text))[1])
    plot_initialisation({"title": "T", "rows": found}, tmp_path / "a.png")
    assert [text for _, text in seen] == titles
    assert set(seen[0][0].get_legend_handles_labels()[1]) == set(labels)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_random_masks_alone_and_diverged_trainings(tmp_path):
    found = rows(["random"], ["none"])
    found += [{**row, "arm": "rescale", "error": None if row["seed"] else 4.0} for row in found if row["sparsity"]]
    plot_initialisation({"title": "T", "rows": found}, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_a_title_is_text_and_no_formula(tmp_path):
    r"""A title such as $\frac$ would make matplotlib's parser fail, after the whole study."""
    plot_initialisation({"title": r"for $\frac$ a run", "rows": rows(["a"], ["none"])}, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()
