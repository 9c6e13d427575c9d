"""What the first worker tells the driver while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.system.progress import Progress
from pipelines.train.pace import measured_pace

ENOUGH = 5
"""Steps that are measured before the time that is left is shown."""

Event = Mapping[str, Any]


class EventQueue:
    """A Ray actor's content: events wait here until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Adds an event."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """Returns the events since the last call, oldest first."""
        events, self._events = self._events, []
        return events


class LiveProgress:
    """Shows a stage's events as one progress task.

    Events are `{"message": text}`, `{"at": step}` when training starts or starts again, and the records of
    the metrics. With `tokens_per_step` it shows the time that is left, and says it once in full, when enough
    steps of this run were measured. `gpus` are those of all workers.
    """

    def __init__(
        self,
        progress: Progress,
        label: str,
        steps: int,
        tokens_per_step: int | None = None,
        gpus: float = 0.0,
    ) -> None:
        self._progress = progress
        self._label, self._steps = label, steps
        self._task = progress.task(label, total=steps, unit="steps")
        self._at = 0
        self._tokens_per_step, self._gpus = tokens_per_step, gpus
        self._first = 1
        self._measured: list[Event] = []
        self._said = False

    def show(self, event: Event) -> None:
        """Takes one event."""
        if "message" in event:
            self._progress.message(event["message"])
        elif "at" in event:
            self._first = event["at"] + 1  # it loads and compiles
            self._measured = []
            self._move(event["at"], **self._unknown())
        else:
            shown = {"loss": event["loss"], "tokens_per_second": float(round(event["tokens_per_second"]))}
            self._move(event["step"], **shown, **self._time_left(event))

    def _time_left(self, record: Event) -> dict[str, str]:
        if record["step"] > self._first:
            self._measured.append(record)
        steps = self._steps - record["step"]
        if self._tokens_per_step is None or len(self._measured) < ENOUGH:
            return self._unknown()
        if not steps:
            return {"left": "nothing"} if self._said else {}
        pace = measured_pace(self._measured, self._tokens_per_step, self._gpus)
        assert pace is not None, "enough steps are measured"
        if not self._said:
            self._said = True
            self._progress.message(f"{self._label}: about {pace.left(steps)} left ({pace.basis})")
        return {"left": pace.left(steps)}

    def _unknown(self) -> dict[str, str]:
        """Replaces what was shown before workers started again, perhaps others."""
        return {"left": "being measured"} if self._said else {}

    def close(self) -> None:
        """Ends the task."""
        self._task.close()

    def _move(self, step: int, **fields: Any) -> None:
        # After a worker was lost this moves back to the checkpoint from which training resumes.
        self._task.advance(step - self._at, **fields)
        self._at = step
