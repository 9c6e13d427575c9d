"""The schema and the reference of recipes say what the keys do, and those committed are current."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from pipelines.kinds import KINDS
from pipelines.recipe.descriptions import descriptions
from pipelines.recipe.parse import RecipeFile, shipped_recipes
from pipelines.recipe.reference import recipe_reference
from pipelines.recipe.schema import recipe_schema

ROOT = Path(__file__).parents[3]
SHIPPED = {name: kind for name, kind in KINDS.items() if not kind.keys.startswith("small_stages:")}
TRAIN: dict[str, Any] = {"data": "corpus", "model": "builtin:tiny", "attention": "full", "steps": 1}
TRAIN |= {"tokens_per_step": 64, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = recipe_schema(SHIPPED)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", shipped_recipes().values(), ids=lambda path: path.stem)
def test_shipped_recipes_fit_the_schema_and_name_it(
    validator: jsonschema.Draft202012Validator, path: Path
) -> None:
    validator.validate(yaml.safe_load(path.read_text()))
    assert path.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")


@pytest.mark.parametrize(
    "keys",
    [
        {"attention": {"kind": "span", "chunk_sizes": 64, "block_size": 32}},
        {"steps": "${steps}", "hylora": {"rank": "${rank}"}},
        {"model": {"new": {"hidden_size": 32}}},
        {"gpu": {"memory": "80GiB"}, "clip": None},
        {"betas": [0.9, "${beta}"], "attention": {"kind": "span", "chunk_sizes": ["${size}", 64]}},
    ],
)
def test_what_a_recipe_may_say_fits(validator: jsonschema.Draft202012Validator, keys: dict[str, Any]) -> None:
    validator.validate({"name": "r", "stages": {"tuned": {"train": TRAIN | keys}, "page": {"report": None}}})


@pytest.mark.parametrize(
    "stages",
    [
        {"tuned": {"train": TRAIN | {"stepz": 1}}},
        {"tuned": {"train": TRAIN | {"steps": "many"}}},
        {"tuned": {"train": TRAIN | {"attention": {"kind": "spam"}}}},
        {"tuned": {"train": TRAIN, "report": {}}},
        {"Tuned": {"train": TRAIN}},
        {"tuned": {"trane": TRAIN}},
        {},
    ],
)
def test_what_no_recipe_may_say_does_not_fit(
    validator: jsonschema.Draft202012Validator, stages: dict[str, Any]
) -> None:
    assert not validator.is_valid({"name": "r", "stages": stages})


def test_the_committed_schema_and_reference_are_those_of_the_keys() -> None:
    committed = (ROOT / "pipelines/recipes/recipe.schema.json").read_text()
    assert json.loads(committed) == recipe_schema(SHIPPED), (
        "run: espan schema > pipelines/recipes/recipe.schema.json"
    )
    reference = (ROOT / "docs/recipe.md").read_text()
    assert reference == recipe_reference(SHIPPED), "print it anew: espan schema --markdown"


def _classes(model: type[BaseModel]) -> set[type[BaseModel]]:
    from pipelines.recipe.reference import _sections

    return {model, *_sections(model)}


def test_every_key_is_described() -> None:
    models = {RecipeFile, *(each for kind in SHIPPED.values() for each in _classes(kind.keys_class))}
    missing = [
        f"{model.__name__}.{name}"
        for model in models
        for name in model.model_fields
        if name not in descriptions(model)
    ]
    assert missing == []
