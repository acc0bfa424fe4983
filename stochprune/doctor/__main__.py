"""``python -m stochprune.doctor``: the doctor where the packages of the command line are missing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from stochprune.doctor.examine import bug_report, examine


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the block for a bug report, or JSON; the exit status is 1 if a self-test fails."""
    parser = argparse.ArgumentParser(prog="stochprune doctor", description=__doc__)
    parser.add_argument("--plain", action="store_true", help="Print the block for a bug report only (as always here).")
    parser.add_argument("--json", action="store_true", help="Print everything as JSON.")
    options = parser.parse_args(arguments)
    examination = examine()
    print(json.dumps(examination, indent=1) if options.json else bug_report(examination))
    raise SystemExit(not examination["passed"])


if __name__ == "__main__":
    main()
