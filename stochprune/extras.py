"""Optional packages: the error that names the extra to install where one is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class MissingExtraError(ModuleNotFoundError):
    """A package that an extra of stochprune brings is not installed; the message has the command that installs it."""


@contextlib.contextmanager
def extra(name: str, function: str) -> Iterator[None]:
    """Inside the context a failed import names the extra that brings the package::

        with extra("studies", "digits"):
            from sklearn.datasets import load_digits

    Args:
        name: of the extra in pyproject.toml.
        function: what needs the package, for the message.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "stochprune":
            raise
        raise MissingExtraError(
            f"{function} needs {package}, which is not installed: pip install 'stochprune[{name}]'", name=error.name
        ) from error
