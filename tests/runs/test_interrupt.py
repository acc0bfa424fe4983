"""Commands that end early report it in one line: a signal, a full disk, an impossible folder, a closed pipe."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

from stochprune.cli import app
from stochprune.runs.interrupt import Stopped, stop_signals
from tests.runs.owners import COMMANDS, OWNERS
from tests.runs.test_damage import files
from tests.runs.test_killed import bits, contents, same

FILES = "stochprune.runs.files.os"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Plotting takes longer than the rest."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).write_bytes(b"a picture"))


def invoke(name: str, out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, [name, *COMMANDS[name].split(), "--out", str(out), *more])


def on_call(number: int, original, act):
    """Return ``original``, but call ``act`` instead at one call, whose number counts from 1."""
    calls = 0

    def wrapped(*arguments):
        nonlocal calls
        calls += 1
        return act() if calls == number else original(*arguments)

    return wrapped


def fails_with(number: int):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("name", ["finetune", "certify", "study", "linear-lab"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_in_one_line_and_the_run_goes_on(tmp_path, monkeypatch, name, number):
    former = signal.signal(number, lambda *_: pytest.fail("the command left the signal to the test"))
    try:
        handler = signal.getsignal(number)
        with monkeypatch.context() as patch:
            stop = on_call(1, os.replace, lambda: os.kill(os.getpid(), number))
            patch.setattr(f"{FILES}.replace", stop)
            result = invoke(name, tmp_path)
        assert result.exit_code == 128 + number, result.output
        assert result.stderr.count("\n") == 1 and "Traceback" not in result.output
        assert number.name in result.stderr and any(str(folder) in result.stderr for folder in tmp_path.iterdir())
        assert not list(tmp_path.rglob(".*"))
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, former)
    assert invoke(name, tmp_path).exit_code == 0


def test_a_rerun_that_is_stopped_keeps_nothing_and_says_so(tmp_path, monkeypatch):
    """Its folder is a temporary one."""
    assert invoke("certify", tmp_path).exit_code == 0
    path = next(tmp_path.rglob("masks-prior.json"))
    for at in (1, 4):
        with monkeypatch.context() as patch:
            patch.setattr(f"{FILES}.replace", on_call(at, os.replace, lambda: os.kill(os.getpid(), signal.SIGTERM)))
            result = CliRunner().invoke(app, ["certify", "--verify", str(path), "--rerun", "--device", "cpu"])
        assert result.exit_code == 128 + signal.SIGTERM and result.stderr.count("\n") == 1
        assert "nothing is kept" in result.stderr


def test_the_folder_that_is_printed_is_the_one_that_was_written(tmp_path):
    result = invoke("linear-lab", tmp_path / "runs [red]final[/x]")
    assert result.exit_code == 0 and str(tmp_path / "runs [red]final[/x]" / "linear-lab-") in result.stdout


@pytest.mark.parametrize("name", ["finetune", "certify", "study", "linear-lab"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_in_one_line(tmp_path, monkeypatch, name, number):
    monkeypatch.setattr(f"{FILES}.fsync", fails_with(number))
    monkeypatch.setattr("stochprune.runs.folder.sync_folder", lambda folder: None)
    result = invoke(name, tmp_path)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and "Traceback" not in result.output
    assert os.strerror(number) in result.stderr and str(tmp_path) in result.stderr
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("at", [1, 3])
def test_a_full_disk_leaves_the_former_files_and_the_run_goes_on(tmp_path, monkeypatch, name, at):
    """After the write that fails every other fails, too; what was there before is whole."""
    expected = OWNERS[name](tmp_path / "whole")
    full = False

    def fsync(descriptor, original=os.fsync):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(descriptor)

    def fill():
        nonlocal full
        full = True
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(f"{FILES}.fsync", fsync)
        patch.setattr(f"{FILES}.replace", on_call(at, os.replace, fill))
        with pytest.raises(OSError) as caught:
            OWNERS[name](tmp_path / "full")
    assert caught.value.errno == errno.ENOSPC and str(tmp_path / "full") in str(caught.value)
    assert not list((tmp_path / "full").rglob(".*"))
    if at > 1:
        assert files(tmp_path / "full") and contents(tmp_path / "full")
    assert bits(OWNERS[name](tmp_path / "full")) == bits(expected)
    whole, resumed = contents(tmp_path / "whole"), contents(tmp_path / "full")
    assert whole.keys() == resumed.keys() and all(same(whole[path], resumed[path]) for path in whole)


@pytest.mark.parametrize("name", OWNERS)
def test_keyboard_interrupts_pass_through_a_library_call(tmp_path, monkeypatch, name):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{FILES}.replace", on_call(2, os.replace, interrupt))
    with pytest.raises(KeyboardInterrupt) as caught:
        OWNERS[name](tmp_path)
    assert type(caught.value) is KeyboardInterrupt and not caught.value.args
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG])
def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch, name, number):
    monkeypatch.setattr(os, "mkdir", fails_with(number))
    result = invoke(name, tmp_path / "runs")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    assert os.strerror(number) in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_where_the_folder_should_be(tmp_path, name):
    (tmp_path / "runs").write_text("mine")
    result = invoke(name, tmp_path / "runs")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    assert "--out" in result.stderr and (tmp_path / "runs").read_text() == "mine"


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"linear-lab", "study"}))
@pytest.mark.parametrize("data", ["../../x", "/etc", "", "..", "x" * 300, "a\x01b", "-x", "[/red]"])
def test_nothing_is_made_for_a_data_set_that_there_is_not(tmp_path, name, data):
    result = invoke(name, tmp_path / "a" / "b", f"--data={data}")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    assert not list(tmp_path.iterdir())


def test_a_message_is_not_markup(tmp_path):
    assert "[/red]" in invoke("finetune", tmp_path, "--data=[/red]").stderr


@pytest.mark.parametrize("name", ["finetune", "certify"])
@pytest.mark.parametrize("options", [("--model", "../x"), ("--device", "cuda:99")])
def test_nothing_is_made_for_other_names_that_there_are_not(tmp_path, name, options):
    result = invoke(name, tmp_path / "a", *options)
    assert result.exit_code == 1 and not list(tmp_path.iterdir())


def test_a_posterior_that_there_is_not(tmp_path):
    assert invoke("certify", tmp_path / "a", "--posteriors", "masks,../x").exit_code == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", ".", "", "-x", "a/b", "x" * 300])
def test_a_study_does_not_leave_its_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "study.yaml"
    path.write_text(
        f"{{name: {name!r}, title: T, job: initialisation, data: [digits], models: [lenet_300_100], seeds: 1, "
        "grid: [{scores: [magnitude], sparsities: [0.9]}]}"
    )
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(tmp_path / "in" / "runs")])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["in", "study.yaml"]


def test_signals_that_are_ignored_stay_ignored():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_second_signal_is_left_to_the_system():
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught, stop_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert caught.value.folder is None and signal.getsignal(signal.SIGTERM) is former


@pytest.mark.parametrize("name", ["backends", "linear-lab"])
def test_a_reader_that_leaves(tmp_path, name):
    """As ``| head`` does: nothing is said, and the run is kept."""
    receive, send = os.pipe()
    os.close(receive)
    code = (
        "import sys; from matplotlib.figure import Figure; from stochprune.cli import app; "
        "Figure.savefig = lambda *a, **o: None; app(sys.argv[1:])"
    )
    options = [] if name == "backends" else [*COMMANDS[name].split(), "--out", str(tmp_path)]
    run = subprocess.run([sys.executable, "-c", code, name, *options], stdout=send, stderr=subprocess.PIPE, text=True)
    os.close(send)
    assert run.returncode == 1 and run.stderr == ""
    assert name == "backends" or list(tmp_path.glob("*/results.json"))
