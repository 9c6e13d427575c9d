"""What the first worker tells the driver while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.progress import Progress

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
    the metrics.
    """

    def __init__(self, progress: Progress, label: str, steps: int) -> None:
        self._progress = progress
        self._task = progress.task(label, total=steps, unit="steps")
        self._at = 0

    def show(self, event: Event) -> None:
        """Takes one event."""
        if "message" in event:
            self._progress.message(event["message"])
        elif "at" in event:
            self._move(event["at"])
        else:
            shown = {"loss": event["loss"], "tokens_per_second": float(round(event["tokens_per_second"]))}
            self._move(event["step"], **shown)

    def close(self) -> None:
        """Ends the task."""
        self._task.close()

    def _move(self, step: int, **fields: Any) -> None:
        # After a worker was lost this goes backwards, to the checkpoint that training goes on from.
        self._task.advance(step - self._at, **fields)
        self._at = step
