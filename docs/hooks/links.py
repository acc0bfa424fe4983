"""Make files outside docs/ part of the site, as they are at this commit, and point links to them.

A Markdown file becomes a page, source code a page with line numbers, anything else a download. They lie under source/.
A link to a folder becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")
CODE = {".py": "py", ".h": "cpp", ".cpp": "cpp", ".cu": "cuda", ".cuh": "cuda", ".yaml": "yaml", ".txt": "text"}
OUTSIDE = "source/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ to which pages link, also indirectly, and those that the navigation names."""
    wanted = [name.removeprefix(OUTSIDE) for name in _entries(config.nav) if name.startswith(OUTSIDE)]
    for page in files.documentation_pages():
        wanted += _targets(page.src_uri, page.content_string)
    while wanted:
        name = wanted.pop()
        if not name.startswith("docs/") and (ROOT / name).is_file() and _uri(name) not in files.src_uris:
            files.append(_generated(name, config))
            if name.endswith(".md"):
                wanted += _targets(_uri(name), (ROOT / name).read_text())
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with its links to files of the repository pointing into the site."""
    here = page.file.src_uri
    if not (ROOT / _name(here)).is_file():
        return markdown  # a page that another hook wrote, or source code

    def pointed(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        name = _resolved(here, target)
        if (ROOT / name).is_dir():
            return text
        if not (ROOT / name).is_file():
            return link[0]
        return f"[{text}]({posixpath.relpath(_uri(name), posixpath.dirname(here))}{anchor or ''})"

    return LINK.sub(pointed, markdown)


def _entries(nav: list | dict | str | None) -> list[str]:
    """Return the paths in the navigation."""
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav or []
    return [path for part in inner for path in _entries(part)]


def _targets(uri: str, text: str) -> list[str]:
    """Return the files of the repository to which a page links."""
    return [_resolved(uri, target) for _, target, _ in LINK.findall(text)]


def _name(uri: str) -> str:
    """Return a page's file in the repository."""
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"


def _resolved(uri: str, target: str) -> str:
    """Return the file in the repository to which a link of a page points."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(_name(uri)), target))


def _uri(name: str) -> str:
    """Return the path in the site of a file of the repository."""
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return OUTSIDE + name + (".md" if Path(name).suffix in CODE else "")


def _generated(name: str, config: MkDocsConfig) -> File:
    path, where = ROOT / name, {"inclusion": InclusionLevel.NOT_IN_NAV}
    if path.suffix in CODE:
        text = f"---\ntitle: {name}\nsearch: {{exclude: true}}\n---\n# {name}\n\n"
        text += f'````` {{.{CODE[path.suffix]} linenums="1"}}\n{path.read_text()}\n`````\n'
        return File.generated(config, _uri(name), content=text, **where)
    if path.suffix == ".md":
        return File.generated(config, _uri(name), content=path.read_text(), **where)
    return File.generated(config, _uri(name), abs_src_path=str(path), **where)
