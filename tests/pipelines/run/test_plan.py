"""The plan says what a run would do, and changes nothing."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import EspanError, RecipeError
from pipelines.run.plan import plan_recipe
from pipelines.run.runner import run_recipe
from pipelines.system.progress import Progress

WriteRecipe = Callable[..., Path]

TEXT = """\
name: sums
variables: {n: 1}
stages:
  one: {number: {value: "${n}"}}
  sum: {total: {of: [one]}}
  bad: {failing: {}}
"""


def actions(path: Path, **settings: str) -> list[str]:
    return [stage.action for stage in plan_recipe(path, settings).stages]


def test_a_plan_tells_what_would_run_go_on_or_run_again(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(TEXT)
    assert actions(path) == ["would run", "would run", "would run"]
    assert not (tmp_path / "run").exists()
    with pytest.raises(EspanError):
        run_recipe(path, {}, Progress(io.StringIO()))
    assert actions(path) == ["finished", "finished", "would go on"]
    again = "would run again: the recipe or its inputs changed"
    assert actions(path, n="2") == [again, again, "would go on"]


def test_a_plan_shows_what_the_kind_of_stage_says(write_recipe: WriteRecipe) -> None:
    assert plan_recipe(write_recipe(TEXT)).stages[1].details == {"adds": "1 terms"}


def test_what_cannot_work_is_refused_all_at_once(write_recipe: WriteRecipe) -> None:
    text = """\
    name: sums
    stages:
      one: {total: {terms: [{file: /nowhere/a}]}}
      two: {total: {of: [one]}}
      three: {total: {of: [onne]}}
    """
    path = write_recipe(text)
    with pytest.raises(RecipeError) as caught:
        plan_recipe(path)
    assert caught.value.problems == (
        f"{path}:3: stages.one.total.terms.0.file: there is no file /nowhere/a",
        f"{path}:4: stages.two.total.of.0: stage 'one' is of kind total, but number is needed here",
        f"{path}:5: stages.three.total.of.0: 'onne' is neither an earlier stage nor a path that exists",
    )


def test_a_finished_stage_is_not_checked_again(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    text = "name: r\nstages:\n  one: {number: {value: 1}}\n"
    path = write_recipe(text)
    run_recipe(path, {}, Progress(io.StringIO()))
    (tmp_path / "term").write_text("4")
    path = write_recipe(f"{text}  sum: {{total: {{of: [one], terms: [{{file: {tmp_path / 'term'}}}]}}}}\n")
    run_recipe(path, {}, Progress(io.StringIO()))
    assert actions(path) == ["finished", "finished"]
    (tmp_path / "term").unlink()
    with pytest.raises(RecipeError, match="there is no file"):
        plan_recipe(path)
