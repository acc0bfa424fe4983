"""A step in which nothing goes wrong."""

from __future__ import annotations


def cases() -> list[str]:
    return ["one"]


def healthy() -> bool:
    return True


def run(case: str) -> dict[str, object]:
    return {}
