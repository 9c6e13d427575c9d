"""One line of JSON per step, and the same for TensorBoard; after a resume no step twice and none missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pipelines.system import storage

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

_NO_CURVE = ("step", "workers", "nodes", "gpus", "context_parallel")
"""Fields that describe the run and are the same at every step."""

Metrics = Mapping[str, Any]
"""Names and numbers; lists go into the file alone."""


def read_metrics(place: str) -> list[dict[str, Any]]:
    """Returns the records of a metrics file, oldest first; an unfinished last line is left out."""
    return list(_complete_records(storage.read_text(place))) if storage.exists(place) else []


def _complete_records(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines(keepends=True):
        # A process that dies while it writes leaves a last line without its end; that step is computed again.
        if line.endswith("\n"):
            yield json.loads(line)


class MetricsLog:
    """Appends to `metrics.jsonl` and TensorBoard events below one folder; only one process may hold it.

    Args:
        folder: a local folder.
        resumed_step: the step training goes on from; later records are dropped, because those steps run
            again.
    """

    def __init__(self, folder: str | Path, *, resumed_step: int) -> None:
        from tensorboardX import SummaryWriter

        path = Path(folder, METRICS_FILE)
        kept = [record for record in read_metrics(str(path)) if record["step"] <= resumed_step]
        storage.write_text_atomic(str(path), "".join(_line(record) for record in kept))
        self._file: IO[str] = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(Path(folder, TENSORBOARD_FOLDER)), purge_step=resumed_step + 1)

    def write(self, record: Metrics) -> None:
        """Adds one step's numbers; `record["step"]` says which step."""
        self._file.write(_line(record))
        self._file.flush()
        for name, value in record.items():
            if name not in _NO_CURVE and not isinstance(value, list):
                self._events.add_scalar(name, value, int(record["step"]))

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        self._file.flush()
        self._events.flush()

    def close(self) -> None:
        """Ends both files."""
        self._file.close()
        self._events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(dict(record), allow_nan=False) + "\n"
