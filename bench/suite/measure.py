"""Measure one case: check its contenders, time them in turns, count their bytes."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch._functorch.config

from stochprune.extras import MissingExtraError
from stochprune.seeding import generator
from stochprune.training.activations import saved_bytes

from . import costs
from .case import Absent, Case, Op, Way, is_ours
from .roof import Roof
from .row import Row
from .turns import median_interval, paired

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROUND_SECONDS = 0.004
"""A contender that is faster repeats its call in each round: clocks and waits cost microseconds."""
FEWEST, MOST = 7, 101
"""Rounds of a case."""
Run = Callable[[], object]
Key = tuple[str, str]
"""A contender and a part."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: of all tensors.
        seconds: time of a case, without checks and first calls; it takes more if the fewest rounds need it.
    """

    device: torch.device
    seconds: float = 5.0


def measure(case: Case, op: Op, settings: Settings, roof: Roof, benchmark: BenchmarkFixture) -> list[Row]:
    """Return the rows of a case: one for each contender and part, without times if the contender is absent or wrong."""
    numbers = torch.random.fork_rng([settings.device] if settings.device.type == "cuda" else [])
    # The ways in plain PyTorch use its generator. A compiled backward pass runs often on one graph.
    with numbers, torch._functorch.config.patch(donated_buffer=False):
        rows: list[Row] = []
        ways: dict[str, Way] = {}
        for contender in op.laws:
            row, way = _checked(contender, case, op, settings.device)
            rows += [dataclasses.replace(row, part=part) for part in case.parts]
            if way is not None:
                ways[contender] = way
        times = _times(ways, case, settings, benchmark)
        saved = {name: _saved(way) for name, way in ways.items()}
        found = []
        for row in rows:
            if row.contender in ways:
                row = _with_times(row, times, op)
                work = op.work(case, row.part)
                share = 1e6 * roof.seconds(work, case.dtype) / row.p50 if row.p50 else None
                row = dataclasses.replace(row, flops=work.flops, moved=work.bytes, roof=share)
                counts = _counts(ways[row.contender].part(row.part), settings.device)
                row = dataclasses.replace(row, saved=saved[row.contender], **counts)
            found.append(row)
        return found


def _checked(contender: str, case: Case, op: Op, device: torch.device) -> tuple[Row, Way | None]:
    """Return a row without times, and the contender, or None if it is absent or wrong."""
    law = op.laws[contender]
    row = Row(case.group, case.op, dict(case.shape), case.dtype, case.mode, "", contender, law)
    try:
        verdict = op.check(contender, case, device)
        row = dataclasses.replace(row, bits_equal=verdict.bits_equal)
        if verdict.wrong is not None or verdict.bits_equal is False:
            return dataclasses.replace(row, wrong=verdict.wrong or "a mask has other bits than the contract's"), None
        way = op.make(contender, case, device)
        return dataclasses.replace(row, weights=way.weights), way
    except (Absent, MissingExtraError) as error:
        return dataclasses.replace(row, absent=str(error)), None
    except Exception as error:  # a contender that fails must not end the run of the others
        return dataclasses.replace(row, wrong=f"{type(error).__name__}: {error}"[:300]), None


def _times(
    ways: Mapping[str, Way], case: Case, settings: Settings, benchmark: BenchmarkFixture
) -> dict[Key, tuple[list[float], int]]:
    """Return the seconds of a call in each round, and the number of calls in a round, of each contender and part.

    A round of pytest-benchmark is one turn of one contender; its setup chooses whose.
    """
    runs = {(name, part): way.part(part) for name, way in ways.items() for part in case.parts}
    if not runs:
        benchmark.pedantic(lambda: None)  # the fixture complains if it is not used
        return {}
    first = {key: costs.least_seconds(run, settings.device, 2) for key, run in runs.items()}
    repeats = {key: max(1, math.ceil(ROUND_SECONDS / seconds)) for key, seconds in first.items()}
    round_seconds = sum(first[key] * repeats[key] for key in runs)
    rounds = min(MOST, max(FEWEST, round(settings.seconds / round_seconds)))
    numbers = generator(0, "turns", case.name)
    keys = [*runs]
    order = [keys[i] for _ in range(rounds) for i in numbers.permutation(len(keys))]
    turns = iter(order)

    def turn(key: Key) -> None:
        run = runs[key]
        for _ in range(repeats[key]):
            run()
        costs.synchronize(settings.device)

    benchmark.pedantic(turn, setup=lambda: ((next(turns),), {}), rounds=len(order))
    times: dict[Key, tuple[list[float], int]] = {key: ([], repeats[key]) for key in keys}
    for key, seconds in zip(order, benchmark.stats.stats.data, strict=True):
        times[key][0].append(seconds / repeats[key])
    return times


def _with_times(row: Row, times: Mapping[Key, tuple[list[float], int]], op: Op) -> Row:
    """Return the row of a contender with its times, its ratio to the baseline and to the best other."""
    seconds, repeats = times[row.contender, row.part]
    p20, p50, p80 = (1e6 * value for value in np.percentile(seconds, [20, 50, 80]))
    row = dataclasses.replace(row, rounds=len(seconds), repeats=repeats, p20=p20, p50=p50, p80=p80)
    if (op.baseline, row.part) in times:
        ratios = paired(seconds, times[op.baseline, row.part][0])
        low, high = median_interval(ratios)
        row = dataclasses.replace(row, ratio=statistics.median(ratios), ratio_low=low, ratio_high=high)
    others = {
        name: found
        for (name, part), (found, _) in times.items()
        if part == row.part and op.laws[name] == row.law and not is_ours(name)
    }
    if is_ours(row.contender) and others:
        best = min(others, key=lambda name: statistics.median(others[name]))
        row = dataclasses.replace(row, best_other=best, advantage=statistics.median(paired(others[best], seconds)))
    return row


def _saved(way: Way) -> int | None:
    """Return the bytes that a forward pass saves for backward; None if there is no backward or nothing can count."""
    if not way.trained or not way.countable:
        return None
    with way.within():
        return saved_bytes(way.forward, [*way.tensors.values()])


def _counts(run: Run, device: torch.device) -> dict[str, Any]:
    """Return the peak of the memory of a part, its launches and the host's time."""
    found: dict[str, Any] = {"peak": costs.peak_bytes(run, device)}
    if device.type == "cuda":
        found |= {"launches": costs.launches(run, device), "host": costs.host_us(run, device)}
    return found
