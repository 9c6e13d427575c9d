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

from pipelines.context import Check, CheckContext, Context
from pipelines.errors import EspanError, InvalidKeyError
from pipelines.kinds import KINDS, StageKind
from pipelines.recipe.keys.section import ALL_EARLIER, Section, StageKeys
from pipelines.system import storage


class NumberKeys(StageKeys):
    value: int
    log_every: int = 1
    execution_keys: ClassVar[frozenset[str]] = frozenset({"log_every"})


def write_number(keys: NumberKeys, context: Context) -> Mapping[str, Any]:
    storage.write_text_atomic(storage.join(context.output, "number.txt"), str(keys.value))
    return {"number": keys.value, "process": os.getpid()}


class FileTerm(Section):
    file: str
    weight: float = 1.0


class RangeTerm(Section):
    first: int
    last: int = Field(gt=0)


class TotalKeys(StageKeys):
    of: tuple[str, ...] = ()
    terms: tuple[FileTerm | RangeTerm, ...] = ()
    rounding: Literal["up", "down", "nearest"] = "nearest"

    def references(self) -> tuple[str, ...]:
        return self.of


def files_of_total(keys: TotalKeys) -> tuple[str, ...]:
    return tuple(term.file for term in keys.terms if isinstance(term, FileTerm))


def check_total(keys: TotalKeys, context: CheckContext) -> None:
    for i, name in enumerate(keys.of):
        if name != ALL_EARLIER:
            context.require_stage_or_path(f"of.{i}", name, kinds=("number",))
    for i, term in enumerate(keys.terms):
        if isinstance(term, FileTerm) and not storage.exists(term.file):
            raise InvalidKeyError(f"terms.{i}.file", f"there is no file {term.file}")


def plan_total(keys: TotalKeys, context: CheckContext) -> Mapping[str, str]:
    return {"adds": f"{len(keys.of) + len(keys.terms)} terms"}


CHECK_TOTAL = Check(check=check_total, plan=plan_total, external_inputs=files_of_total)


def add_up(keys: TotalKeys, context: Context) -> Mapping[str, Any]:
    numbers = [
        float(storage.read_text(storage.join(one.path, "number.txt"))) for one in context.inputs.values()
    ]
    files = [
        float(storage.read_text(term.file)) * term.weight for term in keys.terms if isinstance(term, FileTerm)
    ]
    return {"headline": f"total {sum(numbers) + sum(files):g}", "total": sum(numbers) + sum(files)}


class PatientKeys(StageKeys):
    file: str


def wait_for_file(keys: PatientKeys, context: Context) -> Mapping[str, Any]:
    """Leaves one mark per attempt, then waits until the file is there."""
    attempts = len(storage.glob(storage.join(context.output, "attempt-*")))
    storage.write_text_atomic(storage.join(context.output, f"attempt-{attempts}"), "")
    with context.progress.task("waiting", unit="turns") as task:
        while not Path(keys.file).exists():
            task.advance()
            time.sleep(0.02)
    return {"attempts": attempts + 1}


class FailingKeys(StageKeys):
    how: Literal["for the user", "by a bug", "exit"] = "by a bug"


def fail(keys: FailingKeys, context: Context) -> Mapping[str, Any]:
    if keys.how == "for the user":
        raise EspanError("the sky is\ntoo low")
    if keys.how == "exit":
        raise SystemExit(0)
    return {"quotient": 1 // (len(keys.how) - len("by a bug"))}


KINDS.update(
    {
        name: StageKind(name, keys=f"small_stages:{keys}", run=f"small_stages:{run}", check=check)
        for name, keys, run, check in (
            ("number", "NumberKeys", "write_number", None),
            ("total", "TotalKeys", "add_up", "small_stages:CHECK_TOTAL"),
            ("patient", "PatientKeys", "wait_for_file", None),
            ("failing", "FailingKeys", "fail", None),
        )
    }
)


if __name__ == "__main__":
    from cluster.cli import main

    main()
