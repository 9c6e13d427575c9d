"""Shows progress: live bars on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

PLAIN_INTERVAL_SECONDS = 10.0


class Task:
    """One piece of work with a known or unknown number of steps; safe to advance from several threads.

    Use it as a context manager or call `close` when it is done.
    """

    def __init__(self, progress: Progress, label: str, total: float | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.fields: dict[str, Any] = {}
        self.started = time.monotonic()
        self._progress = progress
        self._closed = False

    def advance(self, steps: float = 1, **fields: Any) -> None:
        """Counts `steps` more as done; `fields` (`loss=1.2`) replace what is shown beside the bar."""
        self._progress._advance(self, steps, fields)

    def close(self) -> None:
        """Ends the task and shows where it stood; calling it again changes nothing."""
        if not self._closed:
            self._closed = True
            self._progress._end(self)

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def details(self) -> str:
        """Returns the fields as `name value` pairs."""
        return "  ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in self.fields.items())

    def line(self) -> str:
        """Returns where the task stands as one plain line."""
        total = f"/{_short(self.total)}" if self.total is not None else ""
        seconds = f"{time.monotonic() - self.started:.0f} s"
        return f"{self.label}: {_short(self.done)}{total} {self.unit}  {seconds}  {self.details()}".rstrip()


class Progress:
    """Reports tasks and messages to one stream (standard error unless given)."""

    def __init__(
        self, stream: TextIO | None = None, *, interval_seconds: float = PLAIN_INTERVAL_SECONDS
    ) -> None:
        self._stream = stream or sys.stderr
        self._interval = interval_seconds
        self._lock = threading.RLock()
        self._said: dict[Task, float] = {}
        self._bars: RichProgress | None = None
        self._bar_of: dict[Task, Any] = {}
        self._console = Console(file=self._stream, highlight=False)

    @property
    def live(self) -> bool:
        """Whether the stream is a terminal that can redraw."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def task(self, label: str, total: float | None = None, unit: str = "steps") -> Task:
        """Starts a task of `total` units (None: unknown)."""
        task = Task(self, label, total, unit)
        with self._lock:
            self._said[task] = task.started
            if self.live:
                self._bar_of[task] = self._live_bars().add_task(label, total=total, text=unit)
        return task

    def message(self, text: str) -> None:
        """Prints one line, above the bars where there are any."""
        with self._lock:
            if self._bars is not None:
                self._bars.console.print(text, markup=False, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends every open task and gives the terminal back."""
        for task in list(self._said):
            task.close()

    def _advance(self, task: Task, steps: float, fields: dict[str, Any]) -> None:
        with self._lock:
            task.done += steps
            task.fields.update(fields)
            if task in self._bar_of and self._bars is not None:
                self._bars.update(
                    self._bar_of[task], completed=task.done, text=f"{task.unit}  {task.details()}"
                )
            elif task in self._said and time.monotonic() - self._said[task] >= self._interval:
                self._said[task] = time.monotonic()
                self.message(task.line())

    def _end(self, task: Task) -> None:
        with self._lock:
            if self._said.pop(task, None) is None:
                return
            bar = self._bar_of.pop(task, None)
            if bar is not None and self._bars is not None:
                self._bars.remove_task(bar)
                if not self._bar_of:
                    self._bars.stop()
                    self._bars = None
            self.message(task.line())

    def _live_bars(self) -> RichProgress:
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:g}/{task.total}"),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bars = RichProgress(*columns, console=self._console, transient=True)
            self._bars.start()
        return self._bars


def _short(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float) and not value.is_integer()
        else f"{value:,.0f}"
        if isinstance(value, int | float)
        else str(value)
    )
