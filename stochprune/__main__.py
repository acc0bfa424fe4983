"""The console script ``stochprune``, also ``python -m stochprune``."""

from __future__ import annotations

import sys

from stochprune.extras import MissingExtraError


def main() -> None:
    """Run the command line; where its packages are missing, say in one line how to install them.

    The doctor needs none of them.
    """
    try:
        from stochprune.cli import app
    except MissingExtraError as error:
        if sys.argv[1:2] != ["doctor"]:
            raise SystemExit(f"error: {error}") from None
        from stochprune.doctor.__main__ import main as doctor

        return doctor(sys.argv[2:])
    app()


if __name__ == "__main__":
    main()
