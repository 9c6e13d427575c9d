"""The recipe language: what parses, what is refused, and that a refusal names line, key and spelling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import RecipeError
from pipelines.recipe.parse import find_recipe, read_recipe, resolve, shipped_recipes
from pipelines.recipe.yaml_source import parse_yaml

STAGES = "name: r\nstages:\n  one:\n    number: {value: 1}\n"

WriteRecipe = Callable[[str], Path]


def problems(text: str, **overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolve(parse_yaml(text, "r.yaml"), overrides)
    return list(caught.value.problems)


def total(keys: str) -> str:
    return f"{STAGES}  sum:\n    total: {keys}\n"


def test_a_recipe_parses_to_its_stages_in_order_with_their_dependencies(write_recipe: WriteRecipe) -> None:
    recipe = read_recipe(
        write_recipe(
            """\
        name: sums
        seed: 17
        stages:
          one: {number: {value: 1}}
          two: {number: {value: 2}}
          sum: {total: {of: [two, one]}}
          all: {total: {of: ["*"]}}
        """.replace("all:", "every:")
        )
    )
    assert (recipe.name, recipe.seed) == ("sums", 17)
    assert [(stage.name, stage.depends) for stage in recipe.stages.values()] == [
        ("one", ()),
        ("two", ()),
        ("sum", ("one", "two")),
        ("every", ("one", "two", "sum")),
    ]


def test_the_resolved_recipe_spells_out_defaults_and_parses_to_itself() -> None:
    import yaml

    recipe = resolve(parse_yaml(total("{of: [one], terms: [{file: f}]}"), "r.yaml"), {})
    resolved = recipe.as_dict()
    assert resolved["stages"]["sum"]["total"] == {
        "of": ["one"],
        "terms": [{"file": "f", "weight": 1.0}],
        "rounding": "nearest",
    }
    again = resolve(parse_yaml(yaml.safe_dump(resolved, sort_keys=False), "again.yaml"), {})
    assert again.as_dict() == resolved


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a", "r.yaml:1: a recipe is a mapping with the keys name and stages"),
        ("", "r.yaml:1: a recipe is a mapping with the keys name and stages"),
        ("name: r", "r.yaml:1: stages: this key is required and missing"),
        ("nmae: 1\n" + STAGES, "r.yaml:1: nmae: unknown key; did you mean 'name'?"),
        ("seed: -1\n" + STAGES, "r.yaml:1: seed: must be greater than or equal to 0, not -1"),
        ("seed: '1'\n" + STAGES, "r.yaml:1: seed: must be a whole number, not '1'"),
        ("name: r\nstages: {}", "r.yaml:2: stages: must have at least 1 item"),
        ("name: r\nstages:\n  One:\n    number: {value: 1}", "r.yaml:3: stages.One: a stage's name"),
        ("name: r\nstages:\n  all:\n    number: {value: 1}", "r.yaml:3: stages.all: 'all' is reserved"),
        ("name: r\nstages:\n  a: {number: {value: 1}, total: {}}", "stages.a: needs exactly one kind"),
        ("name: r\nstages:\n  a: 5", "r.yaml:3: stages.a: must be a mapping, not 5"),
        ("name: r\nstages:\n  a: {number: 5}", "r.yaml:3: stages.a.number: must be a mapping, not 5"),
        ("name: r\nstages:\n  a:\n    nubmer: {}", "r.yaml:4: stages.a.nubmer: unknown kind"),
        (total("{of: [later]}\n  later: {number: {value: 1}}"), "sum.total.of.0: stage 'later' comes"),
        (total("{of: [one]}").replace("{value", "{vale: 1, value"), "one.number.vale: unknown key"),
        (total("{of: [sum]}"), "r.yaml:6: stages.sum.total.of.0: a stage cannot use itself"),
        (total("{off: [one]}"), "r.yaml:6: stages.sum.total.off: unknown key; did you mean 'of'?"),
        (total("{of: one}"), "r.yaml:6: stages.sum.total.of: must be a list, not 'one'"),
        (total("{of: [1]}"), "r.yaml:6: stages.sum.total.of.0: must be text, not 1"),
        (total("{rounding: upp}"), "must be one of up, down, nearest, not 'upp'; did you mean 'up'?"),
        (total("{terms: [{file: f, wieght: 2}]}"), "terms.0.wieght: unknown key; did you mean 'weight'?"),
        (total("{terms: [{first: 1}]}"), "sum.total.terms.0.last: this key is required and missing"),
        (total("{terms: [{first: 1, last: 0}]}"), "sum.total.terms.0.last: must be greater than 0, not 0"),
        (total("{terms: [{file: f, weight: heavy}]}"), "terms.0.weight: must be a number, not 'heavy'"),
        (total("{terms: [{file: f, weight: '2'}]}"), "terms.0.weight: must be a number, not '2'"),
        (total("{terms: [{first: 1, last: true}]}"), "terms.0.last: must be a whole number, not true"),
        (total("{terms: [{first: 1, last: 2.0}]}"), "terms.0.last: must be a whole number, not 2.0"),
    ],
)  # fmt: skip
def test_a_mistake_gives_exactly_one_line(text: str, problem: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert problem in found[0]


def test_several_mistakes_are_reported_together_in_the_order_of_the_file() -> None:
    found = problems("name: r\nseeed: 1\nstages:\n  a: {number: {valeu: 1, value: 2}}\n")
    assert found == ["r.yaml:2: seeed: unknown key; did you mean 'seed'?"]
    found = problems("name: r\nstages:\n  a:\n    number:\n      valeu: 1\n  b: {total: {off: []}}\n")
    assert [line.split(": ")[0] for line in found] == ["r.yaml:4", "r.yaml:5", "r.yaml:6"]


def test_a_whole_number_serves_where_a_number_is_wanted() -> None:
    recipe = resolve(parse_yaml(total("{terms: [{file: f, weight: 2}]}"), "r.yaml"), {})
    assert recipe.as_dict()["stages"]["sum"]["total"]["terms"] == [{"file": "f", "weight": 2.0}]


def test_variables_keep_their_type_alone_and_become_text_inside_text() -> None:
    text = "name: r\nvariables: {n: 4, folder: /data}\nstages:\n  a: {number: {value: '${n}'}}\n" + (
        "  b: {total: {terms: [{file: '${folder}/${n}.txt'}]}}\n  c: {total: {terms: [{file: '$${n}'}]}}\n"
    )
    stages = resolve(parse_yaml(text, "r.yaml"), {"n": "5"}).as_dict()["stages"]
    assert stages["a"]["number"]["value"] == 5
    assert stages["b"]["total"]["terms"][0]["file"] == "/data/5.txt"
    assert stages["c"]["total"]["terms"][0]["file"] == "${n}"


def test_unknown_variables_and_settings_are_refused_with_the_nearest() -> None:
    text = "name: r\nvariables: {books: 1}\nstages:\n  a: {number: {value: '${boks}'}}\n"
    assert problems(text) == [
        "r.yaml:4: stages.a.number.value: variable 'boks' is not declared under variables; "
        "did you mean 'books'?"
    ]
    assert problems(text, bokos="2") == [
        "r.yaml:2: variables: --set bokos: no such variable (declared: books); did you mean 'books'?"
    ]


def test_a_recipe_is_found_by_its_path_or_by_its_name(tmp_path: Path, write_recipe: WriteRecipe) -> None:
    path = write_recipe(STAGES)
    assert find_recipe(str(path)) == path
    for name, shipped in shipped_recipes().items():
        assert find_recipe(name) == shipped
    with pytest.raises(RecipeError, match=r"did you mean '.*recipe\.yaml'"):
        find_recipe(str(tmp_path / "recip.yaml"))


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_parses(name: str) -> None:
    recipe = read_recipe(shipped_recipes()[name])
    assert recipe.stages


def test_there_are_shipped_recipes() -> None:
    assert "quickstart" in shipped_recipes()
