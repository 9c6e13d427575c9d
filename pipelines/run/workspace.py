"""Where a run writes: its folder, and what lies in it already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pipelines.context import CheckContext, EarlierStage
from pipelines.errors import EspanError, InvalidKeyError, RecipeError
from pipelines.recipe.parse import ResolvedRecipe, ResolvedStage
from pipelines.records import STARTED, read_record
from pipelines.run.lineage import FileHashes, Identity, identify
from pipelines.run.stages import check_of
from pipelines.system import storage
from pipelines.system.cluster_session import in_ray_job

PREVIOUS = ".previous"
_UNKNOWN = Identity("unknown", {}, {})


class State(StrEnum):
    """What lies in a stage's folder, seen from the recipe."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"
    NEW = "new"
    CHANGED = "changed"


@dataclass(frozen=True)
class Standing:
    """The state of one stage of a recipe in a workspace.

    Attributes:
        stage: the stage.
        output: its folder.
        state: what lies there.
        identity: what it is made from.
        record: the content of `stage.json` if it is finished.
    """

    stage: ResolvedStage
    output: str
    state: State
    identity: Identity
    record: Mapping[str, Any] | None

    def refreshed(self) -> Standing:
        """Looks again at what lies in the folder."""
        state, record = _state(self.output, self.identity)
        return replace(self, state=state, record=record)


def workspace_of(recipe: ResolvedRecipe) -> str:
    """Returns the absolute place where `recipe` writes.

    A relative workspace lies below `ESPAN_HOME` if that is set; else, inside a submitted Ray job, below
    `~/espan`, because a job's own folder is removed with the job; else below the current folder.
    """
    written = recipe.workspace
    if storage.is_remote(written):
        return written.rstrip("/")
    home = os.environ.get("ESPAN_HOME") or ("~/espan" if in_ray_job() else ".")
    if storage.is_remote(home) and not os.path.isabs(os.path.expanduser(written)):
        return storage.join(home, written)
    return str((storage.local_path(home) / storage.local_path(written)).absolute().resolve())


def survey(
    recipe: ResolvedRecipe, workspace: str, hashes: FileHashes, *, planning: bool = False
) -> list[Standing]:
    """Looks at every stage in order: what is finished, what must run. Checks the latter; writes nothing.

    `planning` says that nothing will run here and now; see `CheckContext`.

    Raises:
        RecipeError: what the stages' checks found, one line each.
    """
    standings: list[Standing] = []
    problems: list[str] = []
    for stage in recipe.stages.values():
        known = {standing.stage.name: standing.identity for standing in standings}
        context = check_context(recipe, stage, workspace, planning=planning)
        try:
            identity = identify(recipe, stage, known, hashes)
        except (EspanError, ValueError, OSError) as error:  # what the stage reads cannot be obtained
            problems.extend(_check(recipe, stage, context) or [problem(recipe, stage, error)])
            standings.append(Standing(stage, context.output, State.NEW, _UNKNOWN, None))
            continue
        state, record = _state(context.output, identity)
        standings.append(Standing(stage, context.output, state, identity, record))
        if state is not State.FINISHED:
            problems.extend(_check(recipe, stage, context))
    if problems:
        raise RecipeError(problems)
    return standings


def check_context(
    recipe: ResolvedRecipe, stage: ResolvedStage, workspace: str, *, planning: bool = False
) -> CheckContext:
    """Returns what `stage` may look at while it is checked and planned."""
    earlier: dict[str, EarlierStage] = {}
    for one in recipe.stages.values():
        if one.name == stage.name:
            break
        earlier[one.name] = EarlierStage(one.name, one.kind.name, one.keys, storage.join(workspace, one.name))
    output = storage.join(workspace, stage.name)
    return CheckContext(stage.name, output, recipe.seed, workspace, earlier, planning)


def set_aside(standing: Standing, workspace: str) -> str | None:
    """Moves what lies in the stage's folder to `.previous`; returns where to, None if nothing does."""
    if not _holds_anything(standing.output):
        return None
    record = read_record(standing.output) or read_record(standing.output, STARTED) or {}
    mark = str(record.get("fingerprint", "unknown"))[:8]
    number = 1
    while storage.exists(
        target := storage.join(workspace, PREVIOUS, f"{standing.stage.name}-{mark}-{number}")
    ):
        number += 1
    storage.move_folder(standing.output, target)
    return target


def _state(output: str, identity: Identity) -> tuple[State, Mapping[str, Any] | None]:
    record = read_record(output)
    if record and record.get("fingerprint") == identity.fingerprint:
        return State.FINISHED, record
    started = read_record(output, STARTED)
    if record is None and started and started.get("fingerprint") == identity.fingerprint:
        return State.UNFINISHED, None
    return (State.CHANGED if _holds_anything(output) else State.NEW), None


def _holds_anything(folder: str) -> bool:
    return storage.exists(folder) and bool(storage.glob(folder))


def _check(recipe: ResolvedRecipe, stage: ResolvedStage, context: CheckContext) -> list[str]:
    try:
        check_of(stage.kind).check(stage.keys, context)
    except (EspanError, ValueError, OSError) as error:
        return [problem(recipe, stage, error)]
    return []


def problem(recipe: ResolvedRecipe, stage: ResolvedStage, error: Exception) -> str:
    """Returns the line about what is wrong with a stage, with the recipe's file, line and key."""
    found = error if isinstance(error, InvalidKeyError) else InvalidKeyError("", str(error))
    return recipe.problem(stage.name, found)
