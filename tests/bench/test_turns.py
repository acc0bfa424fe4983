"""Contenders take turns; the first round warms up and does not count."""

from __future__ import annotations

import itertools
from functools import partial

from bench.suite.turns import medians, ratios, take_turns


def test_contenders_take_turns_after_a_round_that_warms_up() -> None:
    order: list[str] = []
    ticks = itertools.accumulate(itertools.count(1))  # 1, 3, 6, 10, ...; the warm-up reads two of them
    times = take_turns({name: partial(order.append, name) for name in "ab"}, 3, lambda: float(next(ticks)))
    assert order == ["a", "b"] * 4
    assert times == {"a": [4, 8, 12], "b": [6, 10, 14]}
    assert medians(times, 10) == {"a": 80, "b": 100}
    assert ratios(times, "a") == {"a": 1, "b": 10 / 8}
