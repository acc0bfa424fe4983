"""Show the docstrings of the package, whose text has some marks of reStructuredText, as Markdown."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?([^`]+)`")  # :func:`name`
ALONE = re.compile(r"^::\n\n(?= {4})", re.MULTILINE)  # a paragraph of two colons, then an indented block
LITERAL = re.compile(r"::$(?=\n\n {4})", re.MULTILINE)  # the same two colons at the end of a text


class Docstrings(griffe.Extension):
    """Turns roles into code, the two colons before an indented block into one, and finds functions that were mapped."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = LITERAL.sub(":", ALONE.sub("", text))

    def on_module_members(self, *, node: ast.AST, mod: griffe.Module, **_: Any) -> None:
        """Document ``a, b = map(f, (1, 2))`` by the function that ``f`` defines and returns."""
        body = getattr(node, "body", [])
        made = {f.name: f.body for f in body if isinstance(f, ast.FunctionDef)}
        for statement in body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Tuple):
                call = statement.value
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "map":
                    [inner] = [f for f in made[ast.unparse(call.args[0])] if isinstance(f, ast.FunctionDef)]
                    for target in statement.targets[0].elts:
                        inner.name = ast.unparse(target)
                        found = griffe.visit(mod.name, filepath=mod.filepath, code=ast.unparse(inner))
                        mod.set_member(inner.name, found.members[inner.name])
