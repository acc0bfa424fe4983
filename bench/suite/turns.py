"""Times of several contenders that take turns, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def take_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Return the seconds of each contender, one number a round, after a first round that warms up.

    Args:
        runs: the contenders by name; each round calls every one of them once.
        rounds: number of rounds that count.
        clock: returns seconds; the default is the processor time of this process.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:
                times[name].append(clock() - start)
    return times


def medians(times: Mapping[str, list[float]], scale: float = 1.0) -> dict[str, float]:
    """Return the median of each contender's times, multiplied by ``scale``, such as 1e3 for milliseconds."""
    return {name: scale * statistics.median(seconds) for name, seconds in times.items()}


def ratios(times: Mapping[str, list[float]], baseline: str) -> dict[str, float]:
    """Return, for each contender, the median of its time divided by the baseline's time in the same round."""
    return {name: statistics.median(paired(seconds, times[baseline])) for name, seconds in times.items()}


def paired(seconds: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratio of two contenders' times in each round."""
    return [a / b for a, b in zip(seconds, others, strict=True)]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the median from order statistics, which assumes independent values only.

    The number of values below the median is binomial (Conover 1999, section 3.2). The interval is that of the smallest
    values and the largest that has the confidence; with five values or fewer it is their whole range, which has less.
    """
    ordered, n = sorted(values), len(values)
    below, k = 0.0, 0
    while 2 * (below := below + math.comb(n, k) / 2**n) <= 1 - confidence:
        k += 1
    return ordered[max(k - 1, 0)], ordered[n - max(k, 1)]
