"""Runs a recipe: its stages in order, skipping those that are finished and resuming the one that is not."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.context import Context, StageOutput
from pipelines.errors import EspanError, InterruptedRunError, one_line
from pipelines.recipe.parse import ResolvedRecipe, read_recipe
from pipelines.records import FAILURE_FILE, FINISHED, STARTED
from pipelines.run.lineage import FileHashes, finished_record, started_record
from pipelines.run.lock import WorkspaceLock, workspace_lock
from pipelines.run.stages import runner_of
from pipelines.run.stop_signals import StopRequested, stop_signals
from pipelines.run.workspace import Standing, State, set_aside, survey, workspace_of
from pipelines.system import storage
from pipelines.system.cluster_session import close_ray_session
from pipelines.system.disk import write_problem
from pipelines.system.progress import Progress


@dataclass(frozen=True)
class StageSummary:
    """One row of the table that ends a run; `seconds` is the time the stage took when it ran."""

    name: str
    kind: str
    state: str
    seconds: float
    headline: str
    output: str


@dataclass(frozen=True)
class RunSummary:
    """The result of a run; `reports` are the pages that its stages wrote (`page` in their results)."""

    workspace: str
    stages: tuple[StageSummary, ...]
    reports: tuple[str, ...]

    @property
    def ran(self) -> int:
        """How many stages ran, not counting those that were finished already."""
        return sum(stage.state == "done" for stage in self.stages)


def run_recipe(
    path: str | Path, overrides: Mapping[str, str] | None = None, progress: Progress | None = None
) -> RunSummary:
    """Runs the recipe at `path` to its end.

    Args:
        path: the recipe.
        overrides: values for its variables.
        progress: where to report; standard error unless given.

    Raises:
        RecipeError: the recipe is wrong; nothing was started.
        WorkspaceBusyError: another run is at work in the workspace.
        InterruptedRunError: a signal asked to stop.
        EspanError: a stage failed; the message says which and why.
    """
    progress = progress or Progress()
    recipe = read_recipe(path, overrides)
    workspace = workspace_of(recipe)
    try:
        with stop_signals():
            return _run(recipe, workspace, progress)
    except StopRequested as stop:
        what = f"stopped by {stop.name}; run the same command again to go on from there"
        raise InterruptedRunError(what, stop.number) from None


def _run(recipe: ResolvedRecipe, workspace: str, progress: Progress) -> RunSummary:
    hashes = FileHashes.load(workspace)
    standings = survey(recipe, workspace, hashes)  # before the lock: a recipe that is refused leaves no trace
    progress.message(f"{recipe.name}: workspace {workspace}")
    with workspace_lock(workspace) as lock:
        hashes.save()
        try:
            return _run_stages(recipe, workspace, standings, lock, progress)
        finally:
            progress.close()
            close_ray_session()


def _run_stages(
    recipe: ResolvedRecipe, workspace: str, standings: list[Standing], lock: WorkspaceLock, progress: Progress
) -> RunSummary:
    outputs: dict[str, StageOutput] = {}
    rows: list[StageSummary] = []
    for number, before in enumerate(standings, 1):
        standing = before.refreshed()  # another run may have worked here until the lock was free
        name = standing.stage.name
        if standing.state is State.FINISHED:
            record = standing.record or {}
            progress.message(f"[{number}/{len(standings)}] {name}: finished")
        else:
            progress.message(f"[{number}/{len(standings)}] {name}: {_announcement(standing, workspace)}")
            record = _run_stage(recipe, workspace, standing, outputs, lock, progress)
        outputs[name] = _output(standing, record)
        rows.append(_row(standing, record))
    reports = [str(each.result["page"]) for each in outputs.values() if "page" in each.result]
    return RunSummary(workspace, tuple(rows), tuple(reports))


def _announcement(standing: Standing, workspace: str) -> str:
    if standing.state is State.CHANGED and (place := set_aside(standing, workspace)):
        return f"running; what an earlier recipe left is now in {place}"
    return "going on" if standing.state is State.UNFINISHED else "running"


def _run_stage(
    recipe: ResolvedRecipe,
    workspace: str,
    standing: Standing,
    outputs: Mapping[str, StageOutput],
    lock: WorkspaceLock,
    progress: Progress,
) -> dict[str, Any]:
    """Runs one stage between `started.json` and `stage.json`, and returns the content of the latter."""
    stage, output = standing.stage, standing.output
    storage.make_folder(output)
    started = started_record(stage, standing.identity)
    storage.write_json_atomic(storage.join(output, STARTED), started)
    context = Context(
        name=stage.name,
        output=output,
        seed=recipe.seed,
        inputs={name: outputs[name] for name in stage.depends},
        workspace=workspace,
        recipe=recipe.as_dict(),
        progress=progress,
    )
    began, clock = _now(), time.monotonic()
    try:
        result = runner_of(stage.kind)(stage.keys, context)
        seconds = time.monotonic() - clock
        record = finished_record(recipe, started, result, began, _now(), seconds)
        lock.confirm()
        storage.write_json_atomic(storage.join(output, FINISHED), record)
    except Exception as error:
        raise _failure(stage.name, output, error) from error
    storage.remove(storage.join(output, FAILURE_FILE))
    return record


def _failure(name: str, output: str, error: Exception) -> EspanError:
    """Returns one line about a failed stage; the traceback goes to a file in the stage's folder."""
    cause = getattr(error, "cause", None) or error  # Ray wraps what a remote task raised
    if isinstance(cause, EspanError):
        return EspanError(f"stage '{name}': {one_line(cause)}")
    if problem := write_problem(error, output):
        return EspanError(f"stage '{name}': {one_line(problem)}")
    place = storage.join(output, FAILURE_FILE)
    storage.write_text_atomic(place, "".join(traceback.format_exception(error)))
    lines = str(cause).strip().splitlines() or [""]
    # An error that crossed processes carries its traceback as text: the last line says what happened.
    text = lines[-1] if "Traceback" in str(cause) else lines[0]
    return EspanError(f"stage '{name}' failed: {type(cause).__name__}: {one_line(text)}; details in {place}")


def _output(standing: Standing, record: Mapping[str, Any]) -> StageOutput:
    stage = standing.stage
    return StageOutput(
        name=stage.name,
        kind=stage.kind.name,
        path=standing.output,
        result=record["result"],
        fingerprint=record["fingerprint"],
        keys=stage.keys,
    )


def _row(standing: Standing, record: Mapping[str, Any]) -> StageSummary:
    return StageSummary(
        name=standing.stage.name,
        kind=standing.stage.kind.name,
        state="finished earlier" if standing.state is State.FINISHED else "done",
        seconds=float(record["seconds"]),
        headline=headline(record["result"]),
        output=standing.output,
    )


def headline(result: Mapping[str, Any]) -> str:
    """Returns a result's own headline, or else its first three plain values."""
    if "headline" in result:
        return str(result["headline"])
    plain = [(name, value) for name, value in result.items() if isinstance(value, str | int | float)]
    return ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in plain[:3])


def _short(value: str | int | float) -> str:
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
