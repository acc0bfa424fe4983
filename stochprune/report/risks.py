"""The table of a study of certificates: means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stochprune.report.pivot import line, spread

COLUMNS = {"bound": "certificate", "mean_loss": "mean of the draws", "kl": "KL", "error": "test error"}


def risks_markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the parts of a Markdown text.

    Args:
        rows: of one network on one data set, see :class:`stochprune.studies.rows.RiskRow`.
    """
    lines = [
        line(
            ("settings", "posterior, objective", "seeds", *COLUMNS.values(), "largest certificate", "processor minutes")
        ),
        line(["---"] * (len(COLUMNS) + 5)),
    ]
    for which in dict.fromkeys((row["score"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["score"], row["arm"]) == which]
        cells = [spread([row[name] for row in mine]) for name in COLUMNS]
        worst = max(row["bound"] for row in mine)
        minutes = spread([row["run_seconds"] / 60 for row in mine])
        lines.append(line((*which, str(len(mine)), *cells, f"{worst:.2f}", minutes)))
    return [
        "Certificates in per cent, KL in nats, mean ± standard deviation over seeds. Each seed has certificates of "
        "its own. To choose among seeds, count the others in `tried_priors` and `tried_certificates`. Processor "
        "minutes are those of a whole run, all its certificates included.",
        "\n".join(lines),
    ]
