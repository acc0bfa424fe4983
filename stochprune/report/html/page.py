"""The page: views in tabs, with the plotting library inside."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from stochprune.extras import extra
from stochprune.report.html.parts import View

HERE = Path(__file__).parent


def render(views: Sequence[View], errors: Sequence[str] = (), *, title: str = "stochprune report") -> str:
    """Return the HTML page of some runs.

    The page names the digests of its scripts and forbids all others and every connection (Content-Security-Policy), so
    that a text from a result file cannot run even if it were not escaped.

    Args:
        errors: messages on runs that cannot be shown.

    Raises:
        MissingExtraError: the packages of the extra ``report`` are missing.
    """
    with extra("report", "a report"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(HERE),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["number"] = number
    scripts = [_inside(plotting_library()), _inside((HERE / "page.js").read_text(encoding="utf-8"))]
    return environment.get_template("page.html.j2").render(
        title=title,
        views=views,
        errors=errors,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    )


@functools.cache
def plotting_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script of 0.9 MB."""
    with extra("report", "a report"):
        import vl_convert
    return str(vl_convert.javascript_bundle())


def number(value: float) -> str:
    """Return a number with four significant digits, and whole numbers with all of theirs."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}", 1) if abs(value) >= 1e-4 else f"{value:.2e}"


def _inside(script: str) -> str:
    """Return a script that can stand in a page: it contains no end of a script element."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
