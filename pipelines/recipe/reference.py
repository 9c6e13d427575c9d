"""The reference of all keys as Markdown, made from the classes that check them."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines.kinds import StageKind
from pipelines.recipe.descriptions import descriptions, summary
from pipelines.recipe.parse import RecipeFile

_PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "anything"}
_PLAIN |= {type(None): "null", dict: "mapping"}
_NAMES = {"HyLora": "HyLoRA", "DeepSpeed": "DeepSpeed", "NoMemory": "none", "Gpu": "GPU"}


def recipe_reference(kinds: Mapping[str, StageKind]) -> str:
    """Returns every key of a recipe with stages of these kinds: its type, its default and what it says."""
    lines = [
        "# Recipe reference",
        "",
        "Every key of a recipe. A key without a default must be given. `${name}` may stand for any value",
        "that the recipe declares below `variables`. `espan schema` prints the same as JSON Schema, by which",
        "editors complete and check keys; `espan schema --markdown` prints this page.",
        "",
        *_table("A recipe", RecipeFile),
    ]
    stages: dict[str, type[BaseModel]] = {name: kind.keys_class for name, kind in kinds.items()}
    shown = set(stages.values())
    for name, keys in stages.items():
        lines += _table(name, keys)
        for section in _sections(keys):
            if section not in shown:
                shown.add(section)
                lines += _table(_name(section), section, level=3)
    return "\n".join(lines)


def _table(heading: str, model: type[BaseModel], level: int = 2) -> list[str]:
    texts = descriptions(model)
    rows = [
        f"| `{name}` | {_type(key.annotation)} | {_default(key)} | {texts.get(name, '').replace('|', '/')} |"
        for name, key in model.model_fields.items()
    ]
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows] if rows else []
    return [f"{'#' * level} {heading}", "", summary(model), "", *table, *([""] if table else [])]


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yields the classes of the mappings below the keys of `model`, depth first, each once."""
    seen: list[type[BaseModel]] = []

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation not in seen:
                seen.append(annotation)
                for information in annotation.model_fields.values():
                    visit(information.annotation)
            return
        for each in get_args(annotation):
            visit(each)

    for information in model.model_fields.values():
        visit(information.annotation)
    yield from seen


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type, arguments)))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type(arguments[0])}"
        return f"list of {len(arguments)}: {', '.join(map(_type, arguments))}"
    if origin is dict:
        return f"mapping of text to {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{_name(annotation)}](#{_name(annotation).lower().replace(' ', '-')})"
    return _PLAIN[annotation]


def _default(information: FieldInfo) -> str:
    if information.is_required():
        return ""
    value = information.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True) or "those of its table"
    return value if value == "those of its table" else f"`{json.dumps(value)}`"


def _name(section: type[BaseModel]) -> str:
    """Returns the heading of a class: its name in words, less what all such names end with."""
    plain = re.sub("(Section|Keys)$", "", section.__name__)
    return _NAMES.get(plain) or " ".join(re.findall(r"[A-Z]+[a-z0-9]*", plain)).lower()
