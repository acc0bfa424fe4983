"""The tests of `make gpu-check`: a row each, whatever one of them does to its process."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from bench import gpu_check
from bench.gpu import journal, tests
from bench.gpu.steps import Step

ROOT = Path(__file__).parents[2]

HERE = Path(__file__).parent / "rehearsal"
FILES = {
    "test_one.py": """
        import ctypes, time, pytest
        import pytest_faults

        def test_good(): pass
        def test_bad(): assert 1 == 2
        def test_segfault(): ctypes.string_at(0)
        @pytest.mark.skip(reason="not here")
        def test_skipped(): pass
        def test_hang(): time.sleep(60)
        def test_sticky():
            pytest_faults.lost.append("the context")
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        def test_after(): pass
        def test_late(): pytest_faults.lost.append("an illegal memory access")
        def test_last(): pass
        @pytest.mark.slow
        def test_slow(): raise AssertionError
        @pytest.fixture
        def broken():
            yield
            raise ValueError("teardown")
        def test_teardown(broken): pass
    """,
    "test_two.py": "import no_such_module",
}


def test_every_test_has_its_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(textwrap.dedent(text))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    monkeypatch.setattr(journal, "RESULTS", tmp_path / "results")
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("FAULTS", str(folder))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    assert gpu_check.main([], [Step("tests", "pytest_faults", 60, 5, lanes=2)]) == 1
    (path,) = (tmp_path / "results").glob("*.jsonl")
    rows = journal.read(path)
    found = {row["case"].split("::")[-1].rsplit("/", 1)[-1]: row for row in rows}
    assert len(found) == len(rows)  # none twice, though the lanes' workers were replaced
    assert {name: row["ok"] for name, row in found.items()} == {
        **dict.fromkeys(("test_good", "test_after", "test_last"), True),
        **dict.fromkeys(("test_bad", "test_segfault", "test_hang", "test_sticky", "test_late", "test_teardown"), False),
        **dict.fromkeys(("test_two.py", "(step)"), False),
        "test_skipped": None,
    }
    assert "assert 1 == 2" in found["test_bad"]["error"] and "no_such_module" in found["test_two.py"]["error"]
    assert "SIGSEGV" in found["test_segfault"]["error"] and "nothing after 5 s" in found["test_hang"]["error"]
    assert "illegal memory" in found["test_sticky"]["error"] and "teardown" in found["test_teardown"]["error"]
    assert "illegal memory" in found["test_late"]["error"]
    assert "not here" in found["test_skipped"]["skipped"] and found["(step)"]["complete"]


def test_every_path_that_is_run_exists() -> None:
    paths = [*tests.TESTS, *(option for option in tests.LEFT_OUT if "/" in option)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
