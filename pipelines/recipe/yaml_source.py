"""YAML that remembers the line of every key, so that an error can name it.

Scalars follow YAML 1.2 rather than PyYAML's 1.1: `2e-4` is a number, `on`, `yes` and `2026-11-01` are text.
`<<` merges mappings, as YAML 1.1 has it: with anchors, stages that differ in a few keys are written once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import RecipeError, did_you_mean, one_line

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlSource:
    """A parsed YAML file.

    Attributes:
        path: the file as the user named it.
        value: its content as dicts, lists and scalars.
        lines: line number (from 1) of every key and list item.
    """

    path: str
    value: Any
    lines: Mapping[KeyPath, int]

    def line(self, key: KeyPath) -> int:
        """Returns the line of `key`, or of the nearest mapping around it that is in the file."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def problem(self, key: KeyPath, what: str, suggestion: str | None = None) -> str:
        """Returns `file:line: key: what; did you mean 'x'?`."""
        place = f"{self.path}:{self.line(key)}: "
        name = ".".join(str(part) for part in key)
        return place + (f"{name}: " if name else "") + one_line(what) + did_you_mean(suggestion)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its YAML 1.1 guesses about plain scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)


_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _first)


def read_yaml(path: str | Path) -> YamlSource:
    """Reads a YAML file that holds one document.

    Raises:
        RecipeError: the file is missing, is not UTF-8 or not YAML, or has a key twice.
    """
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{name}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: cannot be read: {error}") from error
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> YamlSource:
    """Parses YAML text; `name` stands for the file in errors."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        reader = _Reader(loader, name)
        value = reader.read(node, (), ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(_syntax_problem(name, mark.line + 1 if mark else 1, error, text)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{name}:{line}: not valid YAML: {error.reason}") from error
    if reader.problems:
        raise RecipeError(reader.problems)
    return YamlSource(name, value, reader.lines)


def parse_scalar(text: str) -> Any:
    """Returns what `text` means as a YAML scalar: `8` is a number, `true` a boolean, everything else text."""
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))
    return _scalar(_Loader(""), yaml.ScalarNode(tag, text))


class _Reader:
    """Turns nodes into values and notes lines and duplicate keys on the way."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self.loader, self.name = loader, name
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[str] = []

    def read(self, node: yaml.Node, key: KeyPath, around: tuple[yaml.Node, ...]) -> Any:
        self.lines.setdefault(key, node.start_mark.line + 1)
        if any(node is outer for outer in around):
            raise yaml.constructor.ConstructorError(None, None, "an alias contains itself", node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, (*around, node))
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*key, i), (*around, node)) for i, item in enumerate(node.value)]
        return _scalar(self.loader, node)

    def _mapping(self, node: yaml.MappingNode, key: KeyPath, around: tuple[yaml.Node, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, value_node, merged in _pairs(node, around):
            line = name_node.start_mark.line + 1
            name: str = name_node.value
            if name in values and merged:
                continue
            if name in values:
                first = self.lines[(*key, name)]
                dotted = ".".join(str(part) for part in (*key, name))
                self.problems.append(
                    f"{self.name}:{line}: {dotted}: duplicate key, first given in line {first}"
                )
                continue
            self.lines[(*key, name)] = line
            values[name] = self.read(value_node, (*key, name), around)
        return values


def _pairs(
    node: yaml.MappingNode, around: tuple[yaml.Node, ...]
) -> Iterator[tuple[yaml.ScalarNode, yaml.Node, bool]]:
    """Yields a mapping's own keys and values, then those of the mappings that `<<` merges into it.

    The last of each three says whether it was merged: then it counts only where nothing before has its name.
    """
    merges: list[yaml.Node] = []
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", name.start_mark)
        if name.value == "<<" and name.style is None:
            merges += value.value if isinstance(value, yaml.SequenceNode) else [value]
        else:
            yield name, value, False
    for merged in merges:
        if not isinstance(merged, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(
                None, None, "<< merges a mapping or a list of mappings", merged.start_mark
            )
        if any(merged is outer for outer in around):
            raise yaml.constructor.ConstructorError(None, None, "an alias contains itself", merged.start_mark)
        for name, value, _ in _pairs(merged, (*around, merged)):
            yield name, value, True


def _scalar(loader: _Loader, node: yaml.Node) -> Any:
    number = str(node.value).replace("_", "")
    match node.tag:
        case "tag:yaml.org,2002:null":
            return None
        case "tag:yaml.org,2002:bool":
            return str(node.value).lower() == "true"
        case "tag:yaml.org,2002:int":
            return int(number)
        case "tag:yaml.org,2002:float":
            return float(number)
        case "tag:yaml.org,2002:str":
            return node.value
    raise yaml.constructor.ConstructorError(None, None, f"unknown tag {node.tag}", node.start_mark)


def _syntax_problem(name: str, line: int, error: yaml.MarkedYAMLError, text: str) -> str:
    written = text.splitlines()[line - 1] if line <= len(text.splitlines()) else ""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    hint = "; put quotes around a value that holds ${...} inside { }" if "${" in written else ""
    return f"{name}:{line}: not valid YAML: {one_line(what)}{hint}"
