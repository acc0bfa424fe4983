"""``stochprune report``: one HTML page for runs of every kind, which needs no network and no other file."""

from stochprune.report.html.page import render
from stochprune.report.html.sources import Source, SourceError, read_source
from stochprune.report.html.views import view_of

__all__ = ["Source", "SourceError", "read_source", "render", "view_of"]
