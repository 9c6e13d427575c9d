"""A recipe as JSON Schema, by which editors complete and check keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from pipelines.kinds import StageKind
from pipelines.recipe.descriptions import descriptions, summary
from pipelines.recipe.parse import STAGE_NAME, RecipeFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE = {"type": "string", "pattern": r"^\$\{[^}]+\}$", "description": "one of the recipe's variables"}
_A_VARIABLE = {"$ref": "#/$defs/Variable"}
_PLAIN = ("integer", "number", "boolean", "array")


class _Generator(GenerateJsonSchema):
    """Describes keys by the docstrings of their classes, and lets a variable stand for any value."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        json_schema = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        texts = descriptions(model)
        for name, value in json_schema.get("properties", {}).items():
            value.pop("title", None)
            if name in texts:
                value["description"] = texts[name]
        json_schema.pop("title", None)
        json_schema["description"] = summary(model)
        return json_schema


def recipe_schema(kinds: Mapping[str, StageKind]) -> dict[str, Any]:
    """Returns the JSON Schema of recipes whose stages are of these kinds."""
    models = {name: kind.keys_class for name, kind in kinds.items()}
    references, shared = models_json_schema(
        [(model, "validation") for model in (RecipeFile, *models.values())], schema_generator=_Generator
    )
    definitions = {name: _with_variables(each) for name, each in shared["$defs"].items()}
    top = definitions.pop(references[RecipeFile, "validation"]["$ref"].rsplit("/", 1)[-1])
    stages = {name: references[model, "validation"] for name, model in models.items()}
    optional = {
        name
        for name, model in models.items()
        if not any(f.is_required() for f in model.model_fields.values())
    }
    top["properties"]["stages"] = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{STAGE_NAME.pattern}$"},
        "additionalProperties": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
            "properties": {
                name: {"anyOf": [stage, {"type": "null"}]} if name in optional else stage
                for name, stage in stages.items()
            },
        },
        "description": "in the order in which they run: a name, and below it the kind and its keys",
    }
    return {
        "$schema": DIALECT,
        "title": "A recipe of Expansion Span",
        **top,
        "$defs": {**definitions, "Variable": _VARIABLE},
    }


def _with_variables(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a mapping's schema in which `${name}` may stand for every value that is not text."""
    properties = {name: _variable_or(value) for name, value in schema.get("properties", {}).items()}
    return {**schema, "properties": properties}


def _variable_or(schema: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {key: schema[key] for key in ("description", "default") if key in schema}
    value = {key: each for key, each in schema.items() if key not in described}
    for each in (value, *value.get("anyOf", ())):
        if "items" in each:
            each["items"] = _variable_or(each["items"])
        if "prefixItems" in each:
            each["prefixItems"] = [_variable_or(item) for item in each["prefixItems"]]
    choices = any(key in value for key in ("anyOf", "oneOf", "enum", "const", "pattern"))
    plain = value.get("type") in _PLAIN or choices
    return {**described, "anyOf": [value, _A_VARIABLE]} if plain else schema
