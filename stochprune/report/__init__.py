"""What a study found, from the content of its ``results.json``: a summary over seeds, a table, a picture."""

from stochprune.report.certificates import certificate_table, draw_certificates
from stochprune.report.figure import draw
from stochprune.report.summary import Row, Spread, summarize
from stochprune.report.table import table

__all__ = ["Row", "Spread", "certificate_table", "draw", "draw_certificates", "summarize", "table"]
