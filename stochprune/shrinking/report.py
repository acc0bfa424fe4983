"""The report of :func:`stochprune.shrink`: what it removed, and what it had to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

Number = TypeVar("Number", int, float)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """Units that stay although they are constant or unneeded.

    Attributes:
        layer: qualified name of the layer that has the units; "" for the whole model.
        units: their number.
        reason: why they stay.
    """

    layer: str
    units: int
    reason: str


@dataclass(frozen=True)
class ShrinkReport:
    """The changes that :func:`stochprune.shrink` made; its text is a table.

    Attributes:
        parameters: the number of parameters before and after.
        macs: multiplications and additions of one forward pass on the example inputs, in pairs, before and after, as
            counted by ``torch.utils.flop_counter``.
        milliseconds: of a forward pass on the example inputs in evaluation mode, before and after, the fastest of five.
            It is a hint: measure with the inputs and the number of threads that you will use.
        changed: by the name of a parameter, its shape before and after; only those that changed.
        removed: modules that were removed as a whole, because nothing needed their output or it was constant.
        kept: the units that could not be removed, with the reason.
    """

    parameters: tuple[int, int]
    macs: tuple[int, int]
    milliseconds: tuple[float, float]
    changed: dict[str, tuple[Shape, Shape]]
    removed: tuple[str, ...]
    kept: tuple[Kept, ...]

    def __str__(self) -> str:
        rows = [("", "before", "after", "left"), _row("parameters", self.parameters), _row("MACs", self.macs)]
        before, after = self.milliseconds
        rows += [("milliseconds", f"{before:.3g}", f"{after:.3g}", f"{after / before:.1%}" if before else "")]
        rows += [(name, _text(before), _text(after), "") for name, (before, after) in self.changed.items()]
        rows += [(name, "", "removed", "") for name in self.removed]
        lines = _table(rows)
        lines += [f"kept: {k.units} of {k.layer or 'the model'}: each {k.reason}" for k in self.kept]
        return "\n".join(lines)


def joined(reports: Mapping[str, ShrinkReport], child: str) -> ShrinkReport:
    """Return one report of separate parts of a model, by the part's name; its numbers are sums over the parts.

    Args:
        child: the name of the part in the model that its report is on.
    """

    def renamed(part: str, name: str) -> str:
        return part + name.removeprefix(child)

    whole = reports.values()
    return ShrinkReport(
        parameters=_sums([report.parameters for report in whole]),
        macs=_sums([report.macs for report in whole]),
        milliseconds=_sums([report.milliseconds for report in whole]),
        changed={renamed(part, name): each for part, r in reports.items() for name, each in r.changed.items()},
        removed=tuple(renamed(part, name) for part, r in reports.items() for name in r.removed),
        kept=tuple(replace(kept, layer=renamed(part, kept.layer)) for part, r in reports.items() for kept in r.kept),
    )


def _sums(pairs: Sequence[tuple[Number, Number]]) -> tuple[Number, Number]:
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)


def _row(name: str, numbers: tuple[int, int]) -> tuple[str, str, str, str]:
    before, after = numbers
    return name, f"{before:,}", f"{after:,}", f"{after / before:.1%}" if before else ""


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
