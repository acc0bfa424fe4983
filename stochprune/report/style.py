"""Helpers of all pictures and tables: colours, an empty figure, saving, a table for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stochprune.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

BLUE, ORANGE, GREEN, GREY, SKY = "#0072B2", "#D55E00", "#009E73", "#999999", "#56B4E9"
"""Readable with colour blindness (Okabe and Ito)."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, which needs no display."""
    with extra("studies", "a plot"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file whose bytes depend only on the figure."""
    figure.savefig(path, dpi=140, metadata={"Software": None})


def tidy(axis: Axes, grid: Literal["both", "y"] = "both") -> None:
    """Remove the frame on the right and at the top, and add thin grid lines."""
    axis.grid(axis=grid, linewidth=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def log_errors(axis: Axes, subs: tuple[int, ...]) -> None:
    """Put the errors on a logarithmic axis, labelled in plain numbers at ``subs`` times the powers of ten."""
    with extra("studies", "a plot"):
        from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=subs))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(NullFormatter())
    tidy(axis, grid="y")


def terminal_table(title: str, caption: str | None = None, *, gap: int | None = None) -> Table:
    """Return an empty table for the terminal, in a frame; with a ``gap`` of spaces between columns it has no frame."""
    with extra("studies", "a table"):
        from rich import box
        from rich.table import Table
    if gap is None:
        return Table(title=title, caption=caption, caption_justify="left")
    padding = (0, gap, 0, 0)
    return Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=padding)


def literal(text: str) -> str:
    """Return a text for a table of the terminal in which brackets are no markup."""
    with extra("studies", "a table"):
        from rich.markup import escape
    return escape(text)
