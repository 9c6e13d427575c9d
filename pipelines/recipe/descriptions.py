"""What the docstrings of key classes say of each key: the `Attributes` section, one text per key."""

from __future__ import annotations

import inspect
import re
from functools import cache

from pydantic import BaseModel

_ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")


@cache
def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Returns the text about each key of `model`, its base classes' included, each on one line."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and "__doc__" in vars(cls):
            found |= _attributes(inspect.cleandoc(cls.__doc__ or ""))
    for name, information in model.model_fields.items():
        if information.description:
            found[name] = information.description
    return {name: found[name] for name in model.model_fields if name in found}


def summary(model: type[BaseModel]) -> str:
    """Returns the first paragraph of the docstring of `model`, on one line."""
    return " ".join(inspect.cleandoc(vars(model).get("__doc__") or "").split("\n\n")[0].split())


def _attributes(docstring: str) -> dict[str, str]:
    _, _, section = docstring.partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if entry := _ENTRY.fullmatch(line):
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
