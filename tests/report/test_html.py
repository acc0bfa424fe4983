"""The HTML page without a browser: its structure, its specifications, and what it does with files of strangers."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from typer.testing import CliRunner

from stochprune import rng
from stochprune.cli import app
from stochprune.functional import keep_mask
from stochprune.masks.snapshot import snapshot
from stochprune.report.html import SourceError, page, read_source, render, view_of
from stochprune.report.html.accounts import from_certificate, from_row
from stochprune.report.html.masks import snapshot_of
from stochprune.report.html.parts import MOST_CHARACTERS, MOST_DEPTH, flattened
from stochprune.runs.files import save_tensors, write_json
from tests.report.html_runs import HOSTILE, LEDGERS, hostile, make_runs, run_suite, write

FIGURES = {
    "finetune": {
        "Mask fine-tuning against its controls",
        "Errors by sparsity",
        "Density by layer",
        "Keep probabilities by layer",
        "Masks of the first layer",
    },
    "certify": {
        "Learnt posteriors against the prior",
        "What the certificate costs",
        "KL by layer",
        "Learning",
        "Keep probabilities by layer",
        "Masks of the first layer",
    },
    "study": {"Differences to the first arm", "Errors by sparsity"},
    "bench": {"Tax against batch", "Bytes against time", "Roofline"},
    "bench run": {
        "Tax against batch",
        "Bytes against time",
        "Roofline",
        "Right and fast",
        "Scaling: slopes",
        "Scaling: times",
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def views(runs):
    return [view_of(read_source(path)) for path in runs]


@pytest.fixture(autouse=True)
def small_library(monkeypatch):
    monkeypatch.setattr(page, "plotting_library", lambda: "window.vegaEmbed = () => '</script>';")


class Elements(HTMLParser):
    """Collects the start tags, in order, and the texts of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.found if t == tag and all(a.get(k) == v for k, v in wanted.items())]


@pytest.fixture(scope="module")
def elements(views):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "plotting_library", lambda: "window.vegaEmbed = () => '</script>';")
        return Elements(render(views, ["a.json is truncated"]))


@pytest.mark.parametrize("kind", FIGURES)
def test_each_kind_of_run_has_its_figures(views, kind):
    found = [view for view in views if view.kind == kind]
    assert FIGURES[kind] <= {figure.title for figure in found[0].figures}
    assert found[0].tables and found[0].facts


def test_every_chart_has_a_text_alternative(views, elements):
    figures = [figure for view in views for figure in view.figures]
    assert all(figure.table for figure in figures if figure.panels)
    assert all(picture.alt for figure in figures for picture in figure.pictures)
    assert all(image["alt"] for image in elements.all("img"))
    assert all(box["aria-label"] for box in elements.all("div", role="img"))
    ids = {a["id"] for _, a in elements.found if "id" in a}
    for figure in elements.all("figure"):
        assert {figure["aria-labelledby"], figure["aria-describedby"]} <= ids


def test_tabs_are_buttons_that_control_their_panels(views, elements):
    tabs = elements.all("button", role="tab")
    panels = elements.all("section", role="tabpanel")
    assert len(tabs) == len(panels) == len(views)
    assert [tab["aria-controls"] for tab in tabs] == [panel["id"] for panel in panels]
    assert [tab["aria-selected"] for tab in tabs] == ["true"] + ["false"] * (len(tabs) - 1)


def test_the_page_loads_nothing_and_allows_only_its_scripts(elements):
    addresses = [a.get("src") or a.get("href") for _, a in elements.found if "src" in a or "href" in a]
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    (policy,) = (m["content"] for m in elements.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]
    kinds = [a.get("type") for t, a in elements.found if t == "script"]
    run = [text for text, kind in zip(elements.scripts, kinds, strict=True) if kind is None]
    assert len(run) == 2
    for text in run:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


def test_the_specifications_compile(views):
    vl_convert = pytest.importorskip("vl_convert")
    panels = {json.dumps(p.spec): p.spec for v in views for f in v.figures for p in f.panels[:1]}
    for spec in panels.values():
        shown = vl_convert.vegalite_to_svg({**spec, "width": 300})
        assert "<path" in shown and "NaN" not in shown


def test_the_waterfall_adds_up_to_the_bound(runs):
    source = read_source(runs[1])
    for row in source.content["rows"]:
        stated = read_source(runs[1] / f"{row['family']}-{row['objective']}.json").content
        whole, part = from_certificate(stated), from_row(row, source.content["configuration"])
        for account in (whole, part):
            assert math.fsum(cost for _, cost in account.steps()) == pytest.approx(row["bound"], rel=1e-9)
            assert all(cost >= 0 for _, cost in account.steps()) and account.follows()
        assert "+ prior's examples" in dict(whole.steps()) and "+ prior's examples" not in dict(part.steps())


def test_intervals_are_those_of_the_paired_draws(views):
    (figure,) = (f for v in views if v.kind == "certify" for f in v.figures if "against the prior" in f.title)
    rows = {(row[0], row[1]): row[2:] for row in figure.table.rows}
    value, low, high = rows["masks, quadratic", "certificate"]
    assert low <= value <= high and rows["masks, quadratic", "test error, five networks"][1] is None


def test_histograms_count_every_weight(views):
    (figure,) = (f for v in views if v.kind == "finetune" for f in v.figures if "Keep probabilities" in f.title)
    assert [row[1:3] for row in figure.table.rows] == [
        ["fc1.weight", 64 * 300],
        ["fc2.weight", 300 * 100],
        ["fc3.weight", 100 * 10],
    ]
    assert all(sum(row[3:]) == pytest.approx(100) for row in figure.table.rows)


@pytest.mark.parametrize("index", range(7))
def test_texts_of_results_are_escaped(runs, tmp_path, index):
    content = {key: value for key, value in read_source(runs[index]).content.items() if key != "digest"}
    path = write(tmp_path / "results.json", hostile(content))
    try:
        views = [view_of(read_source(path))]
        errors = []
    except SourceError as error:  # the texts were keys that the run needs
        views, errors = [], [str(error)]
    text = render(views, [*errors, HOSTILE], title=HOSTILE)
    assert "<img src=x" not in text and "49" not in re.findall(r"<title>.*</title>", text)[0]
    assert text.count("</script>") == text.count("<script")


NO_NUMBER = {"data": 1, "model": 1, "score": 1, "seed": 0, "error": 1.0, "sparsity": "nan"}
WRONG = {
    "truncated": '{"rows": [{"a": 1',
    "a number": "3",
    "not finite": '{"rows": [{"a": 1e999}]}',
    "nan": '{"rows": [{"a": NaN}]}',
    "deep": "[" * 100_000,
    "digest": '{"a": 1, "digest": "00"}',
    "empty": "{}",
    "rows of numbers": '{"rows": [1, 2]}',
    "cells of another program": '{"cells": [{"score": "a"}], "dense": [], "configuration": {}}',
    "a certificate of another program": '{"losses": [1], "kl": {}}',
    "a certificate with a huge m": '{"losses": [1], "kl": {}, "m": -1, "delta": 2, "priors": 0, "unit": 1}',
    "a study of another program": '{"rows": [{"score": 1, "arm": 2, "error": 1.0}]}',
    "a study whose sparsity is no number": json.dumps({"rows": [dict(NO_NUMBER, arm=arm) for arm in ("a", "b")]}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_foreign_file_is_named_and_the_others_are_shown(runs, tmp_path, name):
    wrong = write(tmp_path / "wrong.json", WRONG[name])
    with pytest.raises(SourceError, match=re.escape(str(wrong))):
        view_of(read_source(wrong))
    out = tmp_path / "page.html"
    arguments = ["report", wrong, runs[2], "--out", out]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0 and str(wrong) in result.stderr and str(wrong) in out.read_text()


def test_halves_of_characters_and_long_names_keep_the_other_runs(tmp_path):
    """JSON allows lone surrogates, which UTF-8 cannot write; a name of 300 characters raises OSError."""
    half, long = write(tmp_path / "half.json", '{"a\\ud800": "\\udfff"}'), tmp_path / ("x" * 300)
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(half), str(long), "--out", str(out)])
    assert result.exit_code == 0 and str(long) in result.stderr
    assert "<dt>a?</dt><dd>?</dd>" in out.read_text(encoding="utf-8")


def test_deep_results_are_cut():
    """The dotted names of a deep result would take memory of the square of its depth."""
    deep: dict = {}
    for _ in range(5000):
        deep = {"k" * 1000: deep, "n": 1}
    shown = flattened(deep)
    assert len(shown) == MOST_DEPTH and max(map(len, shown)) <= MOST_DEPTH * (MOST_CHARACTERS + 1)


def test_a_page_does_not_replace_the_results_that_it_shows(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"rows": []}')
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(path)])
    assert result.exit_code == 1 and "--out" in result.stderr and path.read_text() == '{"rows": []}'


def test_a_loop_of_links_as_the_page_is_one_line(runs, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    result = CliRunner().invoke(app, ["report", str(runs[-1]), "--out", str(loop)])
    assert result.exit_code == 1 and str(loop) in result.stderr and isinstance(result.exception, SystemExit)


def test_without_any_run_there_is_no_page(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 1 and str(tmp_path) in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_large_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stochprune.report.html.sources.MOST_BYTES", 10)
    with pytest.raises(SourceError, match=r"big\.json"):
        read_source(write(tmp_path / "big.json", {"rows": [1, 2, 3, 4]}))


def test_a_damaged_part_of_a_run_is_named(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[1], folder)
    state = folder / "masks-quadratic.pt"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"masks-quadratic\.pt"):
        view_of(read_source(folder))
    seed = torch.tensor(0)
    for logits, other in ((torch.zeros(1).expand(2000, 2000), seed), (torch.zeros(2, 2), torch.tensor(1j))):
        save_tensors(state, {"fc1.mask_logits": logits, "fc1.mask_seed": other})
        with pytest.raises(SourceError, match=re.escape(str(folder))):
            view_of(read_source(folder))
    save_tensors(state, {"fc1.mask_logits": torch.zeros(0), "x": [1]})
    assert view_of(read_source(folder)).figures


@pytest.mark.parametrize("seed", [5, 2**64 - 5])
def test_pictures_have_masks_of_every_seed(seed):
    tensors = {"fc.mask_logits": torch.zeros(3, 8), "fc.mask_seed": torch.tensor(rng.as_int64(seed))}
    at = {"seed": seed, "draw": 0, "stream": rng.stream("fc.weight")}
    kept = keep_mask(rng.threshold_from_logits(torch.zeros(3, 8)), **at)
    assert snapshot_of(tensors)["first"] == snapshot({}, {"fc": kept})["first"]


def test_foreign_masks_are_left_out(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    (stored,) = folder.glob("*/masks.json")
    first = {"name": 1, "shape": [10**9, 10**9], "share": [0.5], "units": ["zz"]}
    write_json(stored, {"keep": {"fc1": ["a"] * 20, "fc2": [1]}, "first": first})
    titles = {figure.title for figure in view_of(read_source(folder)).figures}
    assert "Errors by sparsity" in titles and not titles & {"Keep probabilities by layer", "Masks of the first layer"}


def test_a_ledger_beside_others_is_read_alone():
    views = [view_of(read_source(path)) for path in sorted(LEDGERS.glob("*.json"))]
    assert {view.kind for view in views} == {"bench", "bench run", "results"}


def test_the_roof_has_the_measured_bandwidth_and_rate(runs, views):
    roof = read_source(runs[-1]).content["roof"]
    (figure,) = (f for v in views if v.kind == "bench run" for f in v.figures if f.title == "Roofline")
    for point in figure.panels[0].spec["layer"][-1]["data"]["values"]:
        attainable = min(roof["rate"]["float32"], roof["bandwidth"] * point["x"]) / 1e9
        assert point["y"] == pytest.approx(attainable)


def test_two_runs_of_the_suite_are_compared(runs, tmp_path):
    other, out = run_suite(tmp_path, seconds=0.02), tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(runs[-1]), str(other), "--out", str(out)])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert text.count("<section ") == 3 and "Run B against run A" in text
    assert re.search(r"slower|faster|no difference shown", text)


def test_a_suite_without_a_common_ratio_keeps_both_tabs(runs, tmp_path):
    empty = {key: value for key, value in read_source(runs[-1]).content.items() if key != "digest"}
    path, out = tmp_path / "empty.json", tmp_path / "page.html"
    write_json(path, empty | {"rows": [], "slopes": [], "fast_p": []})
    result = CliRunner().invoke(app, ["report", str(runs[-1]), str(path), "--out", str(out)])
    assert result.exit_code == 0 and "in common" in result.stderr
    assert out.read_text().count("<section ") == 2
