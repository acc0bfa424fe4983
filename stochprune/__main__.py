"""The console script ``stochprune``, also ``python -m stochprune``."""

from __future__ import annotations

from stochprune.extras import MissingExtraError


def main() -> None:
    """Run the command line; where its packages are missing, say in one line how to install them."""
    try:
        from stochprune.cli import app
    except MissingExtraError as error:
        raise SystemExit(f"error: {error}") from None
    app()


if __name__ == "__main__":
    main()
