"""Runs pytest on another build of the extension: ``python -m tests.with_extension FILE.so [pytest's arguments]``."""

from __future__ import annotations

import importlib.util
import sys

import pytest


def main() -> int:
    spec = importlib.util.spec_from_file_location("stochprune._C", sys.argv[1])
    assert spec is not None and spec.loader is not None, sys.argv[1]
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return pytest.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
