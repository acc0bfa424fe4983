"""Runs trainings and commands in one process and in two ranks, which torchrun's own agent starts: ``launching.py OUT``.

The agent forks the ranks from this process, which has imported everything. A case leaves its files in OUT/NAME; a rank
that ends with an error writes it to OUT/NAME/RANK.txt.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import stochprune as sp
from stochprune.cli import app
from stochprune.language_models import LlamaShape, small_llama, train_tokenizer
from stochprune.runs import ranks
from stochprune.training import FinetuneConfig, LoopOptions
from tests.runs.counting import count
from tests.runs.owners import COMMANDS, dense, problem, state

Work = Callable[[Path], None]
TEXT = "".join(f"{i} and {i * i % 7}\n" for i in range(300))
FINETUNE = f"finetune {COMMANDS['finetune']} --checkpoint-every 2".split()
LM = ["--context", "16", "--epochs", "2", "--retrain-epochs", "1", "--calibration", "2", "--batch-size", "16"]
LM += ["--weight-lr", "0.01"]  # with less training or text the cut would empty a layer


class At:
    """A callback that does something on one rank after a step."""

    def __init__(self, step: int, rank: int, action: Callable[[], object]) -> None:
        self.step, self.rank, self.action = step, rank, action

    def on_step(self, state: sp.training.loop.State) -> None:
        if state.step == self.step and ranks.rank() == self.rank:
            self.action()


def train(out: Path, *callbacks: object, broken: bool = False) -> None:
    """Fine-tune masks in batches of 16, 16, 15 and 1 example; each rank stores its model and its history."""
    x, y = problem()
    if broken:
        x = x.clone()
        x[15] = torch.nan  # in the share of rank 1
    batches = [(x[:16], y[:16]), (x[16:32], y[16:32]), (x[32:47], y[32:47]), (x[47:], y[47:])]
    model = sp.convert(dense(), keep_kept=0.6)
    options = LoopOptions(accumulate=2, clip_norm=1.0)
    config = FinetuneConfig(epochs=2, checkpoint_every=1, budget="kl")
    with ranks.joined():
        found = sp.finetune(model, batches, config, out=out, callbacks=callbacks, options=options)
        torch.save([state(model), found.history], out / f"{ranks.rank()}.pt")


class Routed(nn.Module):
    """The first or the second layer of equal shape, by the sign of an example's first number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([dense(), dense()])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layers[int(row[0] > 0)](row[None]) for row in x])


def routed(out: Path) -> None:
    """Train weights in batches whose halves, the shares of two ranks, use different layers."""
    x, y = problem()
    halves = x[:, 0].argsort().view(2, 6, 4)  # below and above the median
    batches = [(x[rows], y[rows]) for rows in halves.transpose(0, 1).flatten(1)]
    model = Routed()
    with ranks.joined():
        sp.training.train_weights(model, batches, sp.training.WeightConfig(epochs=1))
        torch.save(state(model), out / f"{ranks.rank()}.pt")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(out: Path) -> None:
    train(out, At(2, 1, die))


def hung(out: Path) -> None:
    os.environ[ranks.TIMEOUT] = "1"
    train(out, At(1, 1, lambda: time.sleep(30)))


def nan(out: Path) -> None:
    train(out, broken=True)


def finetune(out: Path) -> None:
    app([*FINETUNE, "--out", str(out)], standalone_mode=False)


def finetune_killed(out: Path) -> None:
    finish, count = sp.training.step.Stepper.__call__, 0

    def step(self, batches):
        nonlocal count
        count += 1
        if count == 9 and ranks.rank() == 1:
            die()
        return finish(self, batches)

    sp.training.step.Stepper.__call__ = step
    finetune(out)


def finetune_lm(out: Path) -> None:
    models = out.parent / "models"
    command = ["finetune-lm", "--model", models / "llama", "--data", models / "text.txt", "--out", out, *LM]
    app([str(word) for word in command], standalone_mode=False)


def _logged(work: Work, out: Path) -> None:
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            work(out)
    except BaseException:
        (out / f"{os.environ.get('RANK', 0)}.txt").write_text(traceback.format_exc())
        os._exit(1)  # a fork that shares threads of its parent may not end by itself


def alone(work: Work, out: Path) -> None:
    """Run the work in a fork."""
    out.mkdir(exist_ok=True)
    if not (pid := os.fork()):
        try:
            _logged(work, out)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def pair(work: Work, out: Path) -> None:
    """Run the work in two ranks, as ``torchrun --nproc-per-node 2`` does."""
    out.mkdir(exist_ok=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        monitor_interval=0.05,
        start_method="fork",
    )
    with contextlib.suppress(ChildFailedError):
        elastic_launch(config, _logged)(work, out)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    sp.data.digits()  # imports what each run would import anew
    Figure.savefig = lambda self, path, **_: Path(path).write_bytes(b"a picture")
    (out / "models").mkdir()
    (out / "models" / "text.txt").write_text(TEXT)
    tokenizer = train_tokenizer(TEXT, 300)
    tokenizer.save_pretrained(out / "models" / "llama")
    shape = LlamaShape(width=8, layers=1, heads=2, hidden=12)
    small_llama(shape, len(tokenizer), 16, 0).save_pretrained(out / "models" / "llama")
    for work in (train, routed, finetune, finetune_lm):
        alone(work, out / f"{work.__name__}-1")
        pair(work, out / f"{work.__name__}-2")
    for work in (killed, hung, nan, finetune_killed, count):
        pair(work, out / work.__name__)
    (out / "left.pt").write_bytes(next((out / "killed").glob("*/checkpoint.pt")).read_bytes())
    pair(train, out / "killed")
    pair(finetune, out / "finetune_killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
