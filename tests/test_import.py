"""``import stochprune`` costs little more than ``import torch``, and still shows all of its names."""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import stochprune as sp

HERE = Path(__file__).parent  # not the repository's root, whose folders could be imported
HEAVY = {
    *("matplotlib", "sklearn", "scipy", "typer", "rich", "yaml", "transformers", "triton", "torch._inductor"),
    *("torch._dynamo", "stochprune.pac_bayes", "stochprune.training", "stochprune.studies", "stochprune.theory"),
    *("stochprune.scores", "stochprune.data", "stochprune.report", "stochprune.cli", "stochprune.runs"),
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_nothing_heavy():
    code = """
import json, sys, torch
before = {*sys.modules}
import stochprune
print(json.dumps([*{*sys.modules} - before]))
"""
    loaded = json.loads(run(code))
    assert "stochprune.nn" in loaded and HEAVY.isdisjoint(loaded)


def test_every_name_is_there_on_the_first_call():
    """In a fresh process, and in another order than the package's."""
    lazy = {name: getattr(sp, name).__name__ for name in sp.__all__}
    code = "import stochprune as sp\n" + "".join(f"print(sp.{name}.__name__)\n" for name in [*lazy][::-1])
    assert run(code).split() == [*lazy.values()][::-1]
    assert {*sp.__all__} <= {*dir(sp)}
    with pytest.raises(AttributeError, match="sketch"):
        _ = sp.sketch


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("native", ("cache.enabled", "freed.budget", "Workspace.budget")),
        ("kernels", ("cache.enabled",)),
        *(("cuda", ("NAME",)), ("report", ("finetune_table",)), ("runs", ("CheckpointError",))),
        *(("shrinking", ("ShrinkReport",)), ("studies", ("load",)), ("theory", ("__name__",))),
    ],
)
def test_paths_of_the_documentation_need_one_import(package, names):
    pytest.importorskip(f"stochprune.{package}", exc_type=ImportError)  # a backend may be missing here
    code = "import stochprune\n" + "".join(f"stochprune.{package}.{name}\n" for name in names)
    assert run(code + "print('there')") == "there\n"


def test_the_version_says_that_the_package_is_not_installed():
    code = """
import importlib.metadata, torch

def version(name):
    raise importlib.metadata.PackageNotFoundError(name)

importlib.metadata.version = version
import stochprune
from stochprune.runs.results import versions
print(stochprune.__version__, versions()["stochprune"])
"""
    assert run(code).split() == ["0+not.installed"] * 2


@pytest.mark.parametrize("package", ["training", "pac_bayes"])
def test_names_are_those_of_their_package(package):
    home = importlib.import_module(f"stochprune.{package}")
    names = {name for name in sp.__all__ if name in home.__all__}
    assert names and all(getattr(sp, name) is getattr(home, name) for name in names)


@pytest.mark.slow
def test_import_takes_at_most_half_more_than_torch():
    """The aim is 1.3. In time of the processor, the least of several runs, since the machine may be busy."""

    def seconds(code: str) -> float:
        used = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run(code)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(used)

    assert seconds("import stochprune") < 1.5 * seconds("import torch")
