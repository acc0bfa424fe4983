"""The report of :func:`stochprune.shrink`: what it removed, and what it had to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
