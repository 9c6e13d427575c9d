"""Turns pydantic's errors into what a recipe's author needs: key, mistake, nearest valid spelling."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.errors import InvalidKeyError, nearest, split_key
from pipelines.recipe.yaml_source import KeyPath, YamlSource

_WANTED = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "tuple": "a list", "dict": "a mapping", "model": "a mapping", "mapping": "a mapping",
}  # fmt: skip
_CHOICES = re.compile(r"'([^']*)'")


@dataclass(frozen=True)
class _Complaint:
    """One error of pydantic's; `member` of the union at `where` complained, if it was a union's member."""

    key: KeyPath
    details: ErrorDetails
    member: str = ""
    where: KeyPath = ()


def validation_problems(
    error: ValidationError, model: type[BaseModel], value: Any, source: YamlSource, where: KeyPath
) -> list[str]:
    """Returns one line per mistake in the mapping `value`, written at `where` and not a valid `model`."""
    complaints = [_complaint(details, value) for details in error.errors()]
    kept = sorted(_of_the_likeliest_members(complaints), key=lambda one: source.line((*where, *one.key)))
    return [_line(complaint, model, source, where) for complaint in kept]


def coerced_values(written: Any, parsed: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yields key and complaint for every scalar that parsing turned into another type.

    pydantic takes the text `"8"` for the number 8 and the number 1.0 for 1. In a recipe that hides slips, so
    only a whole number where a number is wanted passes.
    """
    if isinstance(written, dict) and isinstance(parsed, BaseModel | dict):
        values = dict(parsed) if isinstance(parsed, BaseModel) else parsed
        for name in written.keys() & values.keys():
            yield from coerced_values(written[name], values[name], (*key, name))
    elif isinstance(written, list) and isinstance(parsed, list | tuple) and len(written) == len(parsed):
        for i, (item, value) in enumerate(zip(written, parsed, strict=True)):
            yield from coerced_values(item, value, (*key, i))
    elif isinstance(written, str | int | float) and type(parsed) in (bool, int, float, str):
        widened = type(written) is int and type(parsed) is float
        if type(written) is not type(parsed) and not widened:
            kind = {bool: "bool", int: "int", float: "float", str: "string"}[type(parsed)]
            yield key, f"must be {_WANTED[kind]}, not {_shown(written)}"


def _complaint(details: ErrorDetails, value: Any) -> _Complaint:
    """Separates, in pydantic's location, the keys as written from the labels of union members in between."""
    key: list[str | int] = []
    member = ""
    where: KeyPath = ()
    for part in details["loc"]:
        if _holds(value, part):
            value = value[part]
            key.append(part)
        elif not member and (details["type"] != "missing" or part != details["loc"][-1]):
            member, where = str(part), tuple(key)
    if details["type"] == "missing":
        key.append(details["loc"][-1])
    return _Complaint(tuple(key), details, member, where)


def _holds(value: Any, part: int | str) -> bool:
    return part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)


def _of_the_likeliest_members(complaints: list[_Complaint]) -> list[_Complaint]:
    """Keeps, of a value that is none of several alternatives, only the complaints of the one it fits best."""
    kept = [complaint for complaint in complaints if not complaint.member]
    for where in dict.fromkeys(complaint.where for complaint in complaints if complaint.member):
        members: dict[str, list[_Complaint]] = {}
        for complaint in complaints:
            if complaint.member and complaint.where == where:
                members.setdefault(complaint.member, []).append(complaint)
        kept.extend(min(members.values(), key=partial(_misfit, where=where)))
    return kept


def _misfit(complaints: list[_Complaint], where: KeyPath) -> tuple[bool, int]:
    """Ranks a union's member: worst when the value is of another type altogether, then by mistakes."""
    other_type = any(one.key == where and one.details["type"].endswith("_type") for one in complaints)
    return other_type, len(complaints)


def _line(complaint: _Complaint, model: type[BaseModel], source: YamlSource, where: KeyPath) -> str:
    details, key = complaint.details, (*where, *complaint.key)
    context = details.get("ctx", {})
    cause = context.get("error")
    match details["type"]:
        case "missing":
            return source.problem(key, "this key is required and missing")
        case "extra_forbidden":
            known = _field_names(model, complaint.key[:-1])
            return source.problem(key, "unknown key", nearest(str(key[-1]), known))
        case "union_tag_not_found":
            return source.problem(key, f"the key {context['discriminator']} is required and missing")
        case "value_error" if isinstance(cause, InvalidKeyError):
            return source.problem((*key, *split_key(cause.key)), cause.what, cause.suggestion)
        case "value_error" | "assertion_error":
            return source.problem(key, str(cause))
        case "literal_error" | "enum" | "union_tag_invalid":
            return _wrong_choice(details, key, source)
    wanted = _WANTED.get(re.sub(r"_(type|parsing|from_float)$", "", details["type"]))
    what = f"must be {wanted}" if wanted else _must(details["msg"])
    if isinstance(details["input"], dict | list) and not wanted:
        return source.problem(key, what)
    return source.problem(key, f"{what}, not {_shown(details['input'])}")


def _must(message: str) -> str:
    """Turns `Dictionary should have at least 1 item after validation, not 0` into what it must have."""
    return re.sub(r"^\w+ should", "must", message).partition(" after validation")[0]


def _wrong_choice(details: ErrorDetails, key: KeyPath, source: YamlSource) -> str:
    context = details["ctx"]
    choices = _CHOICES.findall(context.get("expected_tags") or context["expected"])
    written = context.get("tag", details["input"])
    if "discriminator" in context:
        key = (*key, context["discriminator"].strip("'"))
    what = f"must be one of {', '.join(choices)}, not {_shown(written)}"
    return source.problem(key, what, nearest(written, choices) if isinstance(written, str) else None)


def _field_names(model: type[BaseModel], key: KeyPath) -> list[str]:
    """Returns the keys that may stand in the mapping at `key` below `model`, whichever alternative it is."""
    models = [model]
    for part in key:
        if isinstance(part, str):
            fields = [one.model_fields[part].annotation for one in models if part in one.model_fields]
            models = [inner for annotation in fields for inner in _models_in(annotation)]
    return [name for one in models for name in one.model_fields]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields every pydantic model inside an annotation such as `list[A | B] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _shown(value: Any) -> str:
    """Returns a value as the user may have written it, cut short."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = "empty" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
