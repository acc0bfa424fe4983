"""The rules of the house: imports go one way, three files sample bits."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "stochprune"
# From the top: a module may import from rows below its own, and from its own.
LAYERS = [
    {"cli", "__main__"},
    {"studies", "doctor"},
    {"language_models"},
    {"integrations", "distributed"},
    {"training", "pac_bayes", "theory", "shrinking"},
    {"report"},
    {"nn", "scores", "bounds", "data"},
    {"masks", "models"},
    {"functional"},
    {"backends"},
    {"reference", "native", "kernels", "cuda"},
    {"materialised", "patterns", "threshold_cache"},
    {"address"},
    {"rng", "seeding", "sparse_rows", "memory_format", "quantised", "runs", "arguments", "extras", "shards"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "kernels").glob("*.py"))]


def owner(path: Path) -> str:
    return "kernels" if path.parent.name == "kernels" else path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("stochprune.")}
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "stochprune":
            parts = (node.module or "").split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return names & set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    name = owner(path)
    if name == "__init__":
        return
    assert name in LEVEL, f"{name} has no place in the order of imports"
    upward = {other for other in imported(path) if LEVEL[other] < LEVEL[name]}
    assert not upward, f"{path.name} imports {upward}, which stand above {name}"


def test_all_tables_and_pictures_are_made_in_report():
    drawing = re.compile(r"^\s*(from|import) (matplotlib|rich\.table|rich import box)", re.MULTILINE)
    assert {owner(path) for path in MODULES if drawing.search(path.read_text())} == {"report"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_package_imports_what_is_private_to_another(path):
    found = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stochprune.")
        if node.module.split(".")[1] != owner(path)
        for alias in node.names
        if alias.name.startswith("_")
    }
    assert not found


def test_every_module_was_found():
    assert {"rng", "native", "kernels", "functional", "nn"} <= {owner(path) for path in MODULES}
    assert "native" in imported(PACKAGE / "native" / "products.py") and "rng" in imported(
        PACKAGE / "reference" / "masked.py"
    )


GENERATORS = re.compile(
    r"\.bernoulli_?\(|manual_seed|torch\.rand|rand_like|randn_like|randint|np\.random\.(?!default_rng|Generator)"
    r"|^import random$|tl\.rand|curand|mt19937|std::rand|0xD2511F53|0xCD9E8D57",
    re.IGNORECASE | re.MULTILINE,
)
MAY_DRAW = {"stochprune/rng.py", "csrc/common/philox.h", "kernels/philox.py"}


def test_three_files_sample_bits():
    sources = [p for folder in ("stochprune", "kernels", "csrc") for p in (ROOT / folder).rglob("*")]
    sources = [p for p in sources if p.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"}]
    found = {}
    for path in sources:
        code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith(("#", "//")))
        if path.suffix == ".py":
            code = re.sub(r'"""[\s\S]*?"""', "", code)
        if hits := set(GENERATORS.findall(code)):
            found[str(path.relative_to(ROOT))] = hits
    assert set(found) == MAY_DRAW, found
