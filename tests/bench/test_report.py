"""The page and the ledger's file that ``make bench`` writes from a run of the suite, and the site's tables from it."""

from __future__ import annotations

import json
import re

import pytest

from bench import report, suite_tables
from stochprune.bench.compare import compare, read
from tests.report.html_runs import run_suite


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture
def written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LEDGER", tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    report.PAGE.write_text("# Written by hand\n\n## Tables\n\nold\n")
    assert report.main([str(folder)]) == 0
    return tmp_path


def test_the_page_has_every_number(folder, written):
    page, found = (written / "page.md").read_text(), read(folder)
    assert page.startswith("# Written by hand\n\n## Tables\n\n") and "old" not in page
    for title in ("### linear", "### Bytes a weight", "### Right and fast", "### Scaling"):
        assert title in page
    shown = [row for row in found.rows if row.contender == "ours" and row.group == "ops"]
    assert len(shown) == 4
    for row in shown:
        assert f"**{row.ratio:.2f}** ({row.ratio_low:.2f} to {row.ratio_high:.2f})" in page
    tables = [block.strip().splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4 and all(len({line.count("|") for line in lines}) == 1 for lines in tables)
    assert re.search(r"draws \| 1 to 8 \| weights 960, tokens 3 \| ours", page)


def test_the_ledger_has_the_bytes_of_the_run(folder, written):
    [kept] = written.glob("cpu-*.json")
    assert kept.read_bytes() == (folder / "results.json").read_bytes()
    assert re.fullmatch(r"cpu-\d{4}-\d\d-\d\d-[0-9a-f.]+", kept.stem)
    assert {change.change for change in compare(read(kept), read(folder)).changes} == {1.0}


def test_the_site_reads_the_new_file(written, monkeypatch):
    pytest.importorskip("mkdocs")
    from tests.test_site import hook

    ledger = hook("ledger")
    monkeypatch.setattr(ledger, "RESULTS", written)
    for mark in ("cpu-about", "cpu-steps", "cpu-memory"):
        assert ledger.on_page_markdown(f"<!-- ledger: {mark} -->", page=None).count("24") or mark == "cpu-about"
    assert "| rows 24, cols 40, tokens 2 |" in ledger.cpu_steps() and "seed replay" in ledger.cpu_memory()


def test_wrong_and_absent_contenders_are_named(folder):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    wrong = [{**row, "wrong": "a | bad\ngradient", "p50": None} for row in rows if row["contender"] == "eager"]
    assert suite_tables.untimed(wrong) == ["- linear, float32: `eager` wrong: a | bad gradient"]
    assert "| wrong |" in suite_tables.times(wrong)
    absent = [{**row, "absent": "no package", "p50": None} for row in rows if row["contender"] == "eager"]
    assert "eager" not in suite_tables.times(absent) and "no package" in suite_tables.untimed(absent)[0]


@pytest.mark.parametrize(
    "change", [{"left": 2}, {"configuration": {"small": True, "only": ""}}, {"kind": "study"}, None]
)
def test_what_is_no_whole_run_is_refused(folder, tmp_path, change, capsys):
    from stochprune.runs.files import write_json

    content = json.loads((folder / "results.json").read_text())
    content.pop("digest")
    path = tmp_path / "results.json"
    write_json(path, content | (change or {}))
    if change is None:
        path.write_text(path.read_text()[:-9])
    with pytest.raises(SystemExit):
        report.main([str(path)])
    assert str(path) in capsys.readouterr().err.replace("\n", "")
