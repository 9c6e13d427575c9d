"""What a stage leaves in its folder: `started.json` before its work, `stage.json` when it is done.

A stage is finished when `stage.json` holds its fingerprint; that file is written last and atomically.
"""

from __future__ import annotations

from typing import Any

from pipelines.system import storage

FORMAT = "espan-stage/1"
FINISHED, STARTED = "stage.json", "started.json"
FAILURE_FILE = "failure.txt"
"""What is known of why a stage failed, in full."""


def read_record(output: str, name: str = FINISHED) -> dict[str, Any] | None:
    """Returns a stage's record; None when there is none, or none that can be read."""
    try:
        record = storage.read_json(storage.join(output, name))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None
