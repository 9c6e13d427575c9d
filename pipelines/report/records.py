"""What a workspace tells of its run: the recipe, and a record for every stage of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import EspanError
from pipelines.kinds import KINDS
from pipelines.records import FINISHED, STARTED, read_record
from pipelines.system import storage


@dataclass(frozen=True)
class StageRecord:
    """One stage of the run.

    Attributes:
        name, kind: as the recipe has them.
        keys: of the recipe, defaults spelt out.
        path: its folder.
        finished: its record, the content of `stage.json`; empty when it is not finished.
        started: it was begun.
    """

    name: str
    kind: str
    keys: Mapping[str, Any]
    path: str
    finished: Mapping[str, Any]
    started: bool

    @property
    def result(self) -> Mapping[str, Any]:
        """What its runner returned; empty when it is not finished."""
        result: Mapping[str, Any] = self.finished.get("result", {})
        return result

    @property
    def state(self) -> str:
        """`finished`, `unfinished` or `not run`."""
        return "finished" if self.finished else "unfinished" if self.started else "not run"


@dataclass(frozen=True)
class RunRecord:
    """A run: its resolved recipe, and its stages in the recipe's order.

    `latest` is the record of the stage that ended last; code, versions and machine are told from it.
    """

    workspace: str
    recipe: Mapping[str, Any]
    stages: tuple[StageRecord, ...]
    latest: Mapping[str, Any]

    def finished(self, kind: str) -> tuple[StageRecord, ...]:
        """The finished stages of a kind."""
        return tuple(stage for stage in self.stages if stage.kind == kind and stage.finished)

    def stage(self, name: str) -> StageRecord | None:
        """The stage called `name`, if there is one."""
        return next((stage for stage in self.stages if stage.name == name), None)


def read_run(workspace: str, recipe: Mapping[str, Any] | None = None) -> RunRecord:
    """Reads the records of the stages of `recipe` below `workspace`.

    A record counts only if it is of the recipe's keys and its inputs are the records beside it: what an
    earlier recipe left behind is not shown as this one's.

    Args:
        workspace: the run's folder.
        recipe: resolved; default: the recipe of the stage that ended last.

    Raises:
        EspanError: no stage of it has finished there.
    """
    found = [
        read_record(record.removesuffix(f"/{FINISHED}"))
        for record in storage.glob(storage.join(workspace, "*", FINISHED))
    ]
    by_end = sorted((record for record in found if record), key=lambda record: str(record["ended"]))
    recipe = recipe or (by_end[-1]["recipe"] if by_end else {"stages": {}})
    finished = _current(recipe, {record["name"]: record for record in by_end})
    if not finished:
        raise EspanError(
            f"{workspace}: no finished stage lies here; give the workspace of a run that has got that far"
        )
    stages = []
    for name, body in recipe["stages"].items():
        ((kind, keys),) = body.items()
        path = storage.join(workspace, name)
        started = read_record(path, STARTED) is not None
        stages.append(StageRecord(name, kind, keys, path, finished.get(name, {}), started))
    return RunRecord(
        workspace, recipe, tuple(stages), max(finished.values(), key=lambda record: str(record["ended"]))
    )


def _current(recipe: Mapping[str, Any], records: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns those of `records` that are of `recipe` and rest on one another."""
    current: dict[str, dict[str, Any]] = {}
    for name, body in recipe["stages"].items():
        ((kind, keys),) = body.items()
        record = records.get(name)
        if (
            record is None
            or record["kind"] != kind
            or _decisive(kind, record["keys"]) != _decisive(kind, keys)
        ):
            continue
        inputs = record["inputs"].items()
        if all(used in current and current[used]["fingerprint"] == mark for used, mark in inputs):
            current[name] = record
    return current


def _decisive(kind: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `keys` without those that say only how the work is done; they may change from run to run."""
    return dict(KINDS[kind].keys_class.decisive(keys)) if kind in KINDS else dict(keys)
