"""Small real kinds of stage to try the runner with; as a program, `espan` with these kinds known.

number: writes a number.            total: adds numbers of stages and of a file.
patient: waits for a file.          failing: fails in a way of choice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipelines.errors import EspanError, InvalidKeyError
from pipelines.recipe.keys.section import ALL_EARLIER, CheckContext, Context, Section, Stage
from pipelines.registry import StageKind, register
from pipelines.system import storage


class NumberStage(Stage):
    value: int
    log_every: int = 1
    execution_keys: ClassVar[frozenset[str]] = frozenset({"log_every"})


def write_number(stage: NumberStage, context: Context) -> Mapping[str, Any]:
    storage.write_text_atomic(storage.join(context.output, "number.txt"), str(stage.value))
    return {"number": stage.value, "process": os.getpid()}


class FileTerm(Section):
    file: str
    weight: float = 1.0


class RangeTerm(Section):
    first: int
    last: int = Field(gt=0)


class TotalStage(Stage):
    of: tuple[str, ...] = ()
    terms: tuple[FileTerm | RangeTerm, ...] = ()
    rounding: Literal["up", "down", "nearest"] = "nearest"

    def references(self) -> tuple[str, ...]:
        return self.of

    def external_inputs(self) -> tuple[str, ...]:
        return tuple(term.file for term in self.terms if isinstance(term, FileTerm))

    def check(self, context: CheckContext) -> None:
        for i, name in enumerate(self.of):
            if name != ALL_EARLIER:
                context.require_stage_or_path(f"of.{i}", name, kinds=("number",))
        for i, term in enumerate(self.terms):
            if isinstance(term, FileTerm) and not storage.exists(term.file):
                raise InvalidKeyError(f"terms.{i}.file", f"there is no file {term.file}")

    def plan(self, context: CheckContext) -> Mapping[str, str]:
        return {"adds": f"{len(self.of) + len(self.terms)} terms"}


def add_up(stage: TotalStage, context: Context) -> Mapping[str, Any]:
    numbers = [
        float(storage.read_text(storage.join(one.path, "number.txt"))) for one in context.inputs.values()
    ]
    files = [
        float(storage.read_text(term.file)) * term.weight
        for term in stage.terms
        if isinstance(term, FileTerm)
    ]
    return {"headline": f"total {sum(numbers) + sum(files):g}", "total": sum(numbers) + sum(files)}


class PatientStage(Stage):
    file: str


def wait_for_file(stage: PatientStage, context: Context) -> Mapping[str, Any]:
    """Leaves one mark per attempt, then waits until the file is there."""
    attempts = len(storage.glob(storage.join(context.output, "attempt-*")))
    storage.write_text_atomic(storage.join(context.output, f"attempt-{attempts}"), str(context.resuming))
    with context.progress.task("waiting", unit="turns") as task:
        while not Path(stage.file).exists():
            task.advance()
            time.sleep(0.02)
    return {"attempts": attempts + 1}


class FailingStage(Stage):
    how: Literal["for the user", "by a bug", "exit"] = "by a bug"


def fail(stage: FailingStage, context: Context) -> Mapping[str, Any]:
    if stage.how == "for the user":
        raise EspanError("the sky is\ntoo low")
    if stage.how == "exit":
        raise SystemExit(0)
    return {"quotient": 1 // (len(stage.how) - len("by a bug"))}


for _kind in (
    StageKind("number", NumberStage, write_number),
    StageKind("total", TotalStage, add_up),
    StageKind("patient", PatientStage, wait_for_file),
    StageKind("failing", FailingStage, fail),
):
    register(_kind)


if __name__ == "__main__":
    from cluster.cli import main

    main()
