"""Reader of a mapping from a YAML file, which may come from a stranger: it names no code, and its size is limited."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from stochprune.arguments import shown
from stochprune.extras import extra

with extra("studies", "stochprune.studies"):
    import yaml

MAX_BYTES = 1 << 16
"""Limit on the bytes of a file. A shipped study has 2,000; parsing a megabyte takes a minute."""
MAX_DEPTH = 16


class _Loader(yaml.SafeLoader):
    """Refuses what surprises: numbers to the base of sixty, and a key that is not text or that occurs twice.

    YAML reads a pattern such as 2:4 as 124, and silently uses the second of two equal keys.
    """

    def number(self, node: yaml.ScalarNode) -> int | float:
        if ":" in node.value:
            text = f"{node.value:.40}"
            raise ValueError(
                f'line {_line(node.start_mark)}: {text} without quotes is a number to the base of sixty: write "{text}"'
            )
        return self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = _line(key_node.start_mark)
            if not isinstance(key, str):
                raise ValueError(
                    f"line {line}: a key must be text, got {shown(key)} (YAML reads on, off, yes and no as true or "
                    "false: put them in quotes)"
                )
            if key in seen:
                raise ValueError(f"line {line}: the key {shown(key)} comes twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)


def load(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        ValueError: see :func:`loads`; the message names the file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return loads(str(path), file.read(MAX_BYTES + 1))


def loads(name: str, content: bytes) -> dict[str, Any]:
    """Read the mapping in the content of a YAML file called ``name``.

    Raises:
        ValueError: more than 64 KiB or 16 levels, aliases (which can expand to gigabytes), tags, invalid UTF-8 or YAML,
            control characters, a number out of range or to the base of sixty (2:4 without quotes), a key that occurs
            twice or is not text, or content that is not a mapping.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8")
        _check_events(text)
        made = yaml.load(text, _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is not YAML that this program reads: {' '.join(str(error).split())}") from None
    if not isinstance(made, dict):
        raise ValueError(f"{name} must contain a mapping, got {shown(made)}")
    return made


def _line(mark: Any) -> int:
    return int(mark.line) + 1


def _is_control(mark: str) -> bool:
    """Return True for half a character, and for control characters, which would change a terminal that shows them."""
    return mark not in "\n\t" and unicodedata.category(mark) in ("Cc", "Cs")


def _check_events(text: str) -> None:
    """Raise on aliases, tags and deep nesting before anything is built.

    YAML's constructor is recursive, and fails in many ways on values that do not fit their tag.
    """
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {_line(event.start_mark)}: aliases (*name) are not supported, write the value out")
        if (tag := getattr(event, "tag", None)) is not None:
            raise ValueError(f"line {_line(event.start_mark)}: tags ({tag:.40}) are not supported, leave it out")
        if isinstance(event, yaml.ScalarEvent) and any(map(_is_control, event.value)):
            raise ValueError(
                f"line {_line(event.start_mark)}: a text with a control character or half a character, "
                f"{shown(event.value)}"
            )
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"line {_line(event.start_mark)}: more than {MAX_DEPTH} levels")
