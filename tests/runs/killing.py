"""Runs commands again and again, kills them with SIGKILL at moments chosen by a seed, and lets each end at last.

    python killing.py OUT SEED KILLS '{"NAME": ["COMMAND", "--OPTION", ...], ...}'

leaves the folder of an uninterrupted run in OUT/NAME/whole, those of killed and resumed ones in OUT/NAME/0, /1, ...
A moment is just before the n-th time that the process opens, renames, removes or makes something in its folder: what it
was about to do, or had half done, is then left undone. Runs are forks of this process, which has imported everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo
from matplotlib.figure import Figure

from stochprune import data
from stochprune.cli import app
from stochprune.language_models import load_language_model

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def run(command: list[str], out: Path, kill_at: int | None = None) -> int | None:
    """Run the command in a fork; the number of its moments, or None if it was killed before."""
    receive, send = os.pipe()
    if not (pid := os.fork()):
        _child([*command, "--out", str(out)], str(out), kill_at, send)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL and kill_at is not None, status
        return None
    assert status == 0, f"the command failed: {text.decode()}"
    return int(text)


def _child(arguments: list[str], out: str, kill_at: int | None, send: int) -> None:
    count = 0

    def watch(event: str, about: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS and str(about[0]).startswith(out):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    status = 0
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            app(arguments, standalone_mode=False)
        os.write(send, str(count).encode())
    except BaseException:
        os.write(send, traceback.format_exc()[-4000:].encode())
        status = 1
    os._exit(status)


def main(out: Path, seed: int, kills: int, commands: dict[str, list[str]]) -> None:
    torch.set_num_threads(1)
    data.digits()  # imports what each run would import anew, as torch._dynamo does
    for command in commands.values():
        with contextlib.redirect_stdout(None), contextlib.suppress(SystemExit):
            app([command[0], "--help"])
        if "--model" in command:
            load_language_model(command[command.index("--model") + 1])
    Figure.savefig = lambda self, path, **_: Path(path).write_bytes(b"a picture")  # else most of the time goes there
    numbers = random.Random(seed)
    for name, command in commands.items():
        moments = run(command, out / name / "whole")
        assert moments is not None
        for i in range(kills):
            folder = out / name / str(i)
            assert run(command, folder, numbers.randrange(1, moments + 1)) is None
            run(command, folder, numbers.randrange(1, moments + 1))  # may end before
            assert run(command, folder) is not None


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
