"""`make gpu-check` loses no result: not to a hang, a crash, a lost GPU, a full disk, or the end of its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import gpu_check
from bench.gpu import journal, summary
from bench.gpu.journal import Journal
from bench.gpu.steps import STEPS, Step

HERE = Path(__file__).parent / "rehearsal"
ROOT = HERE.parents[2]
FAULTS = Step("faults", "faults", 60, 30)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for results: bench/results is elsewhere and OUT unset. The workers find the faults."""
    monkeypatch.setattr(journal, "RESULTS", tmp_path / "results")
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    return tmp_path


def rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["step"], row["case"]): row for row in written(folder)}


def written(folder: Path) -> list[dict[str, Any]]:
    return [row for path in folder.glob("*.jsonl") for row in journal.read(path)]


def check(monkeypatch: pytest.MonkeyPatch, place: Path, faults: str, **step: Any) -> tuple[int, dict[str, Any]]:
    """Run a step with these cases; its exit status and rows by case."""
    monkeypatch.setenv("FAULTS", faults)
    status = gpu_check.main([], [FAULTS._replace(**step)])
    return status, {case: row for (_, case), row in rows(place / "results").items()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_every_case_has_its_row(
    monkeypatch: pytest.MonkeyPatch, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    faults = "good-1 raises good-2 segfault good-3 exits skips sticky good-4 parts late good-5"
    status, found = check(monkeypatch, place, faults)
    assert status == 1
    assert [name for name, row in found.items() if row["ok"]] == ["good-1", "good-2", "good-3", "good-4", "good-5"]
    assert found["parts"]["ok"] is False and "after a part" in found["parts"]["error"]
    assert any(row.get("found") == {"first": 1} for row in written(place / "results"))  # its first part
    assert found["skips"]["ok"] is None and found["skips"]["skipped"] == "not built"
    assert "a wrong shape" in found["raises"]["error"] and "illegal memory" in found["sticky"]["error"]
    assert "SIGSEGV" in found["segfault"]["error"] and "faults.py" in found["segfault"]["log"]
    assert found["late"]["ok"] is False and "illegal memory" in found["late"]["error"] and found["late"]["found"]
    assert "exit status 1" in found["exits"]["error"]
    assert found["(step)"]["restarts"] == 4 and found["(step)"]["failed"] == 6 and found["(step)"]["complete"]
    assert "SIGSEGV" in capfd.readouterr().out


def test_a_hang_is_killed_with_its_children_and_the_next_case_runs(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    status, found = check(monkeypatch, place, "good-1 hangs good-2", case_seconds=2)
    assert status == 1 and found["good-2"]["ok"] and "nothing after 2 s" in found["hangs"]["error"]
    assert gone([int(pid) for pid in (place / "child").read_text().split()])


def test_a_step_ends_with_its_time_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("FAULTS", "good hangs never")
    steps = [FAULTS._replace(seconds=2), Step("next", "works", 30, 20)]
    assert gpu_check.main([], steps) == 1
    found = rows(place / "results")
    assert found["faults", "good"]["ok"] and "time was over" in found["faults", "hangs"]["error"]
    assert found["faults", "(step)"]["first_left"] == ["never"] and not found["faults", "(step)"]["complete"]
    assert found["next", "(step)"]["ok"]


def test_a_worker_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    status, found = check(monkeypatch, place, "good", module="no_such_module")
    assert status == 1 and "no_such_module" in found["(start)"]["log"] and not found["(step)"]["complete"]


def test_a_machine_without_a_gpu_ends_it(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    status, found = check(monkeypatch, place, "unusable good")
    assert status == 2 and "good" not in found and found["unusable"]["error"] == "no GPU here"


def test_a_gpu_that_is_lost_later_ends_nothing(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("FAULTS", "unusable good")
    assert gpu_check.main([], [Step("first", "works", 30, 20), FAULTS, Step("next", "works", 30, 20)]) == 1
    found = rows(place / "results")
    assert found["first", "one"]["ok"] and found["next", "one"]["ok"] and found["faults", "unusable"]["ok"] is False
    (path,) = (place / "results").glob("gpu-unknown*.json")
    assert json.loads(path.read_text())["steps"]["next"]["passed"] == 1


def test_nobody_has_to_listen(place: Path) -> None:
    """The terminal is gone, or `head` has read enough."""
    read, write = os.pipe()
    os.close(read)
    with driver(place, "good-1 raises good-2", stdout=write, stderr=write) as process:
        os.close(write)
    assert process.returncode == 1
    cases = {case: row["ok"] for (_, case), row in rows(place / "results").items()}
    assert cases["good-2"] and cases["(step)"] is False and list((place / "results").glob("gpu-unknown*.json"))


def test_out_is_written_too(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setenv("OUT", str(place / "out" / "new"))
    check(monkeypatch, place, "good")
    assert rows(place / "out" / "new") == rows(place / "results")
    assert sorted(p.suffix for p in (place / "out" / "new").iterdir()) == [".json", ".jsonl", ".log"]


def test_out_may_be_relative(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OUT", "out")
    check(monkeypatch, place, "good")
    assert rows(place / "out")["faults", "good"]["ok"]


def test_a_folder_that_takes_nothing_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUT", str(place / "out"))
    (place / "results").write_text("a file where the folder should be")
    monkeypatch.setenv("FAULTS", "good")
    assert gpu_check.main([], [FAULTS]) == 0
    assert rows(place / "out")["faults", "good"]["ok"]
    assert f"cannot write to {place / 'results'}" in capfd.readouterr().err


def test_a_full_disk_keeps_the_rows_before(place: Path) -> None:
    """A limit on the size of files stands for the disk: a write is cut at it, and the next one fails."""
    code = f"""
import resource
from pathlib import Path
from bench.gpu.journal import Journal
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for case in range(4):
    Journal("now", [Path({str(place)!r})]).write({{"case": case, "text": 20 * "x"}})
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    kept = journal.read(place / "gpu-check-now.jsonl")
    printed = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row["case"] for row in (*kept, *printed)] == [0, 1, 2, 3] and kept and printed
    assert "cannot write" in ended.stderr


def test_a_full_disk_does_not_take_what_workers_print(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """A worker that cannot print ends, and its case with it; the other folder has room."""
    monkeypatch.setenv("OUT", str(place / "out"))
    free = {place / "out": 0, place / "results": journal.FREE}
    monkeypatch.setattr(journal.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path.parent]))
    check(monkeypatch, place, "segfault")
    assert (place / "results" / next((place / "out").glob("*.log")).name).read_text()
    assert not next((place / "out").glob("*.log")).read_text() and rows(place / "out") == rows(place / "results")


def test_rows_are_printed_if_nothing_can_be_written(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "results").write_text("")
    Journal("now", [place / "results"]).write({"step": "a", "case": "b"})
    assert json.loads(capfd.readouterr().out) == {"step": "a", "case": "b"}


def test_a_line_that_was_cut_harms_no_other(place: Path) -> None:
    book = Journal("now", [place])
    book.write({"case": 1})
    path = place / "gpu-check-now.jsonl"
    path.write_bytes(path.read_bytes() + b'{"case": ')
    book.write({"case": 3})
    assert [row["case"] for row in journal.read(path)] == [1, 3]


def driver(place: Path, faults: str, **options: Any) -> subprocess.Popen[bytes]:
    """The check of these cases in a process of its own."""
    code = f"""
import sys
from pathlib import Path
from bench import gpu_check
from bench.gpu import journal
from bench.gpu.steps import Step
journal.RESULTS = Path({str(place / "results")!r})
sys.exit(gpu_check.main([], [Step("faults", "faults", 60, 30)]))
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "FAULTS": faults}, **options)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_the_driver_leaves_the_rows(place: Path, number: signal.Signals) -> None:
    with driver(place, "good-1 good-2 hangs never", stdout=subprocess.DEVNULL) as process:
        while not (place / "child").exists() or not (place / "child").read_text():
            time.sleep(0.02)
            assert process.poll() is None
        process.send_signal(number)
    worker = int((place / "child").read_text().split()[0])
    assert gone([worker])
    cases = {case: row["ok"] for (_, case), row in rows(place / "results").items()}
    assert cases["good-1"] and cases["good-2"] and "never" not in cases
    if number != signal.SIGKILL:
        assert list((place / "results").glob("gpu-unknown*.json"))
    assert gpu_check.main(["--summary", str(place / "results")]) == 0
    ledger = json.loads((place / "results" / "gpu-unknown-unknown-source-unknown.json").read_text())
    assert ledger["steps"]["faults"]["passed"] == 2 and not ledger["steps"]["faults"]["complete"]


def test_the_driver_imports_no_torch() -> None:
    code = "import sys, bench.gpu_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_steps_are_chosen_and_scaled() -> None:
    smoke, tests = gpu_check.chosen("tests, smoke", 4)
    assert (smoke.name, tests.name) == ("smoke", "tests") and smoke.seconds + tests.seconds == pytest.approx(240)
    (tests,) = gpu_check.chosen("tests", 16)
    assert tests.case_seconds / 60 == tests.seconds / 160 == pytest.approx(6)
    assert sum(step.seconds for step in gpu_check.chosen("", None)) <= 590  # ten minutes with the start
    for names, minutes, named in (("smok", None, "smok"), ("", -1.0, "-1")):
        with pytest.raises(ValueError, match=named):
            gpu_check.chosen(names, minutes)


def test_every_run_tells_its_machine() -> None:
    (smoke,) = gpu_check.chosen("smoke", None)
    assert [step.name for step in gpu_check.identified([smoke], STEPS)] == ["versions", "smoke"]
    assert gpu_check.identified(list(STEPS), STEPS) == list(STEPS)
    row = {"step": "versions", "case": "versions", "ok": True, "found": {"gpu": "A"}}
    assert summary.ledger([row])["versions"] == {"gpu": "A"}


def test_a_summary_of_nothing_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--summary", str(place)]) == 2
    assert str(place) in capsys.readouterr().err
