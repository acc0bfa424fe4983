"""The core works on torch and numpy alone, and what needs more says which extra brings it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "vl_convert": "vl-convert-python",
}  # where the package has another name
CORE = {*sys.stdlib_module_names, "torch", "numpy", "stochprune"}
OPTIONAL = (
    *("matplotlib", "sklearn", "scipy", "typer", "click", "rich", "yaml"),
    *("transformers", "tokenizers", "triton", "safetensors", "lightning", "vl_convert", "ray", "submitit", "pytest"),
)
BLOCK = f"""
import sys
from importlib.machinery import PathFinder

class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {OPTIONAL} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Core
"""


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    """Run the code where only the core's packages can be imported."""
    return subprocess.run([sys.executable, "-c", BLOCK + code], cwd=ROOT / "tests", capture_output=True, text=True)


WORK = """
import pkgutil, importlib
import torch
from torch import nn
import torch.nn.functional as F
import stochprune as sp

model = sp.models.build("lenet_300_100", (1, 4, 4), 3, 0)
x = torch.linspace(-1, 1, 120 * 16).sin().view(120, 1, 4, 4)
y = torch.arange(120) % 3
batches = sp.data.Batches(x, y, batch_size=40, seed=0)
for score in (sp.scores.magnitude, sp.scores.snip, sp.scores.grasp, sp.scores.synflow, sp.scores.wanda):
    masks = sp.masks.from_scores(score(model, F.cross_entropy, batches), 0.5)
sp.masks.shuffle(masks, 0)
assert 0 < sp.masks.statistics("w", torch.arange(5.0).numpy(), (5,), torch.arange(1.0, 6.0).numpy()).wasserstein < 1.1
sp.convert(model, masks)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
F.cross_entropy(model(x), y).backward()
optimizer.step()
sp.finetune(model, batches, sp.FinetuneConfig(epochs=1))
assert (sp.harden(model, 0.5)(x)).shape == (120, 3)

assert 0 < sp.bounds.kl_inverse(0.1, 0.05) < 1
parts = sp.data.split(x, y, 0.5)
config = sp.pac_bayes.PriorConfig(prior_epochs=1)
prior = sp.pac_bayes.train_prior(sp.models.mlp((16, 8, 3), seed=0), parts.prior, config)
result = sp.self_bound(prior, parts.certify, sp.pac_bayes.SelfBoundConfig(epochs=1), family="spike_and_slab")
certificate = sp.certify(result.posterior, parts.certify, sp.pac_bayes.CertifyConfig(draws=5))
assert 0 < certificate.bound <= 1

names = [m.name for m in pkgutil.walk_packages(sp.__path__, "stochprune.") if not m.ispkg]
for name in names:
    if name.split(".")[1] not in ("cli", "studies", "integrations", "kernels", "__main__"):
        importlib.import_module(name)
print("all done", len(names))
"""


def test_the_core_works_on_torch_and_numpy_alone():
    ended = without_extras(WORK)
    assert "all done" in ended.stdout, ended.stderr


NEEDY = {
    "sp.data.digits()": ("studies", "digits"),
    "sp.data.load('digits')": ("studies", "digits"),
    "sp.training.ProgressBar('x')": ("studies", "ProgressBar"),
    "import stochprune.studies": ("studies", "stochprune.studies"),
    "import stochprune.cli": ("studies", "the command line"),
    "from stochprune.theory.lab_data import diabetes; diabetes()": ("studies", "diabetes"),
    "import numpy; from stochprune.theory.sketch import recover; recover(*numpy.eye(2)[None].repeat(3, 0))": (
        "studies",
        "recover",
    ),
    "from stochprune.theory import flow; flow.flow(None, None, None, None)": ("studies", "flow"),
    "from stochprune.report.style import new_figure; new_figure(1, 1)": ("studies", "plot"),
    "from stochprune.report import timing_table; timing_table('x', {})": ("studies", "table"),
    "from stochprune.report.html.page import plotting_library; plotting_library()": ("report", "a report"),
    "import stochprune.bench.run": ("bench", "stochprune.bench.run"),
    "import stochprune.kernels": ("gpu", "Triton"),
    "import stochprune.integrations.transformers": ("hf", "stochprune.integrations.transformers"),
    "import stochprune.integrations.lightning": ("loops", "MaskCallback"),
    "import torch; sp.save_sparse(torch.nn.Linear(1, 1), 'x')": ("files", "save_sparse"),
    "sp.load_sparse('x')": ("files", "load_sparse"),
}


def test_an_error_names_the_missing_extra():
    code = "import stochprune as sp\nfrom stochprune.extras import MissingExtraError\n"
    for call in NEEDY:
        code += f"try:\n    {call}\n    print('nothing')\nexcept MissingExtraError as error:\n    print(error)\n"
    ended = without_extras(code)
    lines = ended.stdout.splitlines()
    assert len(lines) == len(NEEDY), ended.stderr
    for (call, (extra, what)), line in zip(NEEDY.items(), lines, strict=True):
        assert f"pip install 'stochprune[{extra}]'" in line and what in line, (call, line)


def test_the_console_script_ends_with_one_line():
    ended = without_extras("from stochprune.__main__ import main\nmain()")
    assert ended.returncode == 1 and not ended.stdout
    assert re.fullmatch(r"error: .* needs typer.*pip install 'stochprune\[studies\]'\n", ended.stderr), ended.stderr


def test_python_m_runs_the_command_line():
    command = [sys.executable, "-m", "stochprune", "--version"]
    assert re.match(r"\d+\.\d+", subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout)


def _imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def _guards(tree: ast.AST) -> list[tuple[str | None, ast.AST]]:
    """The blocks in which a package may be missing: the name of the extra, None for the type checker's."""
    found: list[tuple[str | None, ast.AST]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            found.append((None, node))
        if isinstance(node, ast.With):
            call = node.items[0].context_expr
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "extra":
                found.append((ast.literal_eval(call.args[0]), node))
    return found


def test_every_optional_package_is_guarded_and_is_in_its_extra():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = lambda requirements: {re.match(r"[\w-]+", r)[0] for r in requirements}  # noqa: E731
    assert names(project["dependencies"]) == {"torch", "numpy"}
    extras = {extra: names(listed) for extra, listed in project["optional-dependencies"].items()}
    seen = set()
    for path in sorted((ROOT / "stochprune").rglob("*.py")):
        tree = ast.parse(path.read_text())
        guards = _guards(tree)
        for extra, block in guards:
            for package in _imports(block) - CORE if extra else ():
                assert DISTRIBUTIONS.get(package, package) in extras[extra], f"{path.name}: {package} in {extra}"
                seen.add(package)
        if path.parent.name == "cli":  # all of it behind the guard of its __init__
            continue
        guarded = {id(inner) for _, block in guards for inner in ast.walk(block)}
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        rest = ast.Module([node for node in imports if id(node) not in guarded], [])
        assert _imports(rest) <= CORE, f"{path.relative_to(ROOT)}: {_imports(rest) - CORE} without an extra"
    assert {"matplotlib", "sklearn", "scipy", "yaml", "rich", "typer"} <= seen
