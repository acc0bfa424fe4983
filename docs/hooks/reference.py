"""Write the pages of the API reference: one for each public package, with its public names.

Sources are read, not imported. A name is documented on one page, under the path at which it is defined.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
TOP = "stochprune"
PAGES = {
    name: [f"{TOP}.{name}"]
    for name in (
        *("nn", "functional", "training", "pac_bayes", "masks", "scores", "bounds", "rng", "data", "models"),
        *("language_models", "distributed"),
    )
} | {"integrations": [f"{TOP}.integrations.transformers", f"{TOP}.integrations.lightning"]}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference."""
    pages = {name: (f"{TOP}.{name}", _page(modules)) for name, modules in PAGES.items()}
    for name, (title, text) in {**pages, TOP: (TOP, _top())}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=f"# {title}\n\n{text}"))
    return files


def public_names(module: str) -> dict[str, str]:
    """Return the dotted path at which each public name of a module is defined; modules among the names are left out."""
    tree, homes, listed = _tree(module), {}, None
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == TOP:
            homes |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            homes[node.name] = f"{module}.{node.name}"
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = ast.literal_eval(node.value)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            homes[node.targets[0].id] = f"{module}.{node.targets[0].id}"
    if listed is None:  # a package lists what it imports; a file has what it defines
        package = _path(module).name == "__init__.py"
        listed = [name for name, home in homes.items() if package or home == f"{module}.{name}"]
    names = [name for name in sorted(listed, key=str.lower) if not name.startswith("_")]
    found = {name: _defined(homes[name], module) for name in names}
    return {name: home for name, home in found.items() if not _path(home).exists()}


def _page(modules: list[str]) -> str:
    """Return the text of a page: the first paragraph of each module, and its names."""
    text = ""
    for module in modules:
        text += f"## {module}\n\n" if len(modules) > 1 else ""
        text += (ast.get_docstring(_tree(module)) or "").partition("\n\n")[0].removesuffix("::") + "\n\n"
        text += "".join(f"::: {home}\n\n" for home in public_names(module).values())
    return text


def _top() -> str:
    """Return the text of the page of the package itself: links to other pages, and the names that they do not have."""
    elsewhere = {home for modules in PAGES.values() for module in modules for home in public_names(module).values()}
    names = public_names(TOP)
    links = [f"[`{name}`][{home}]" for name, home in names.items() if home in elsewhere]
    rest = [f"::: {home}\n\n" for home in names.values() if home not in elsewhere]
    return f"`import stochprune as sp` gives these names: {', '.join(links)}, and the following.\n\n" + "".join(rest)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements of a module and of its ``if TYPE_CHECKING`` blocks."""
    for node in tree.body:
        yield from node.body if isinstance(node, ast.If) else [node]


def _defined(home: str, importer: str) -> str:
    """Return where a name that another package may hand on is defined."""
    module, _, name = home.rpartition(".")
    if module != importer and _path(module).name == "__init__.py" and not _path(home).exists():
        return public_names(module).get(name, home)
    return home


def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text())


def _path(module: str) -> Path:
    """Return the file of a module, or where it would be."""
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
