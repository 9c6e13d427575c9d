"""How long training takes, extrapolated from its own measured steps; without any, no time is given."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.records import STARTED, read_record
from pipelines.system import storage
from pipelines.train.worker.metrics import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from pipelines.context import CheckContext
    from pipelines.recipe.keys.train import TrainKeys
    from pipelines.system.worker_resources import Reservation

RECENT = 50
"""A pace is the median of at most this many of the newest records."""

_COST_NOTHING = frozenset({"steps", "learning_rate", "schedule", "weight_decay", "betas", "clip"})
# Of the execution keys only this one changes a step's time and is not in the records.
_COSTLY = frozenset({"resources"})


@dataclass(frozen=True)
class Pace:
    """A step's time, measured.

    Attributes:
        seconds: of a step, the median.
        measured: how many steps.
        gpus: of all workers together.
        nodes: that the workers ran on; None where the records do not say.
    """

    seconds: float
    measured: int
    gpus: float
    nodes: int | None

    def left(self, steps: int) -> str:
        """Returns how long `steps` more take: `3.2 h, 3.2 node-hours, 25.6 GPU-hours`."""
        hours = self.seconds * steps / 3600
        parts = [duration(3600 * hours)]
        if self.nodes is not None:
            parts.append(f"{amount(hours * self.nodes)} node-hours")
        if self.gpus:
            parts.append(f"{amount(hours * self.gpus)} GPU-hours")
        return ", ".join(parts)

    @property
    def basis(self) -> str:
        """Says what it was measured on."""
        steps = "1 step" if self.measured == 1 else f"{self.measured} steps"
        return f"median of {steps}: {amount(self.seconds)} s; checkpoints not counted"


def measured_pace(
    records: Sequence[Mapping[str, Any]], tokens_per_step: int, gpus: float, **shape: int
) -> Pace | None:
    """Returns the pace of the newest of `records`, those of `metrics.jsonl`; None if none is of use.

    Args:
        records: of the metrics, without a run's first step, which loads and compiles.
        tokens_per_step: as in the recipe.
        gpus: that all workers together have now.
        shape: what a record must say of its run (`workers=8`) to count, if it says anything of it.
    """
    alike = [
        record
        for record in records
        if all(record.get(name, value) == value for name, value in shape.items())
        and bool(record.get("gpus", gpus)) == bool(gpus)
    ][-RECENT:]
    if not alike:
        return None
    seconds = statistics.median(tokens_per_step / record["tokens_per_second"] for record in alike)
    return Pace(seconds, len(alike), gpus, alike[-1].get("nodes"))


def planned_time(stage: TrainKeys, workers: Reservation, context: CheckContext) -> str:
    """Returns what `espan plan` says of the time that is left, from steps that ran in the stage's folder."""
    if context.finished:
        return "no steps left"
    records = read_metrics(storage.join(context.output, METRICS_FILE)) if _alike(stage, context) else []
    pace = measured_pace(
        [record for record in records if record["step"] > 1],
        stage.tokens_per_step,
        workers.gpus * stage.workers,
        workers=stage.workers,
        context_parallel=stage.context_parallel,
    )
    if pace is None:
        return "measured in the first steps, then shown while it trains and here"
    left = stage.steps - (_checkpointed(context) if context.state == "unfinished" else 0)
    return f"about {pace.left(left)} for the {left:,} steps left ({pace.basis})"


def duration(seconds: float) -> str:
    """Returns a time in the unit that suits it."""
    if seconds >= 3600:
        return f"{amount(seconds / 3600)} h"
    return f"{amount(seconds / 60)} min" if seconds >= 60 else f"{amount(seconds)} s"


def amount(value: float) -> str:
    """Returns a number with one decimal, or with two significant digits if it is small."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _alike(stage: TrainKeys, context: CheckContext) -> bool:
    """Says whether the steps in the stage's folder did the work that the stage's steps will do."""
    started = read_record(context.output, STARTED)
    if started is None:
        return True
    other = _COST_NOTHING | (stage.execution_keys - _COSTLY)
    now = stage.written.model_dump(mode="json", exclude=set(other))
    return {name: value for name, value in started["keys"].items() if name not in other} == now


def _checkpointed(context: CheckContext) -> int:
    from pipelines.train.job import CHECKPOINTS_FOLDER
    from pipelines.train.worker.checkpoints import CheckpointStore

    newest = CheckpointStore(storage.join(context.output, CHECKPOINTS_FOLDER)).newest()
    return newest.state.step if newest else 0
