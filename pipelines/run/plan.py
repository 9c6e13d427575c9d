"""What a recipe would do here: which stages would run, their shapes and memory; nothing is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.errors import EspanError, RecipeError
from pipelines.recipe.parse import read_recipe
from pipelines.run.lineage import FileHashes
from pipelines.run.stages import check_of
from pipelines.run.workspace import State, check_context, problem, survey, workspace_of

ACTIONS = {
    State.FINISHED: "finished",
    State.UNFINISHED: "would go on",
    State.NEW: "would run",
    State.CHANGED: "would run again: the recipe or its inputs changed",
}


@dataclass(frozen=True)
class StagePlan:
    """What would happen to one stage, and what its kind says of shapes and memory."""

    name: str
    kind: str
    action: str
    output: str
    details: Mapping[str, str]


@dataclass(frozen=True)
class RecipePlan:
    """What would happen to a recipe."""

    name: str
    workspace: str
    stages: tuple[StagePlan, ...]


def plan_recipe(path: str | Path, overrides: Mapping[str, str] | None = None) -> RecipePlan:
    """Returns what `run_recipe` with the same arguments would do.

    Raises:
        RecipeError: it would refuse the recipe: something is wrong, missing, or cannot fit.
    """
    recipe = read_recipe(path, overrides)
    workspace = workspace_of(recipe)
    plans = []
    for standing in survey(recipe, workspace, FileHashes.load(workspace), planning=True):
        stage = standing.stage
        context = replace(check_context(recipe, stage, workspace, planning=True), state=str(standing.state))
        try:
            details = check_of(stage.kind).plan(stage.keys, context)
        except (EspanError, ValueError, OSError) as error:
            raise RecipeError([problem(recipe, stage, error)]) from error
        plans.append(
            StagePlan(stage.name, stage.kind.name, ACTIONS[standing.state], standing.output, dict(details))
        )
    return RecipePlan(recipe.name, workspace, tuple(plans))
