"""The files of a stage in progress: tokens of each part, plan and entry of each shard, below `unfinished/`.

Everything here is committed by a JSON file that is written last, and carries a `key` that says what it was
made of: work whose JSON file is missing, or made of something else, is done again.

    part-00000.tokens     int32, the documents' tokens one after the other
    part-00000.lengths    int32, tokens of each document
    part-00000.rejects    JSON lines, one for each rejected document
    part-00000.json       `PartSummary`
    train-00000.plan      int64 [segments, 4], see `write.PLAN_COLUMNS`; likewise `holdout-...`
    train-00000.json      `ShardSummary`
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.prepare.shards import ShardEntry
from pipelines.system import storage


class PartSummary(BaseModel):
    """What tokenising one part gave; `encodings` counts documents by the encoding they were read with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    documents: int
    tokens: int
    rejected: int
    encodings: dict[str, int]


class ShardSummary(BaseModel):
    """A shard that is in place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    entry: ShardEntry


Summary = TypeVar("Summary", PartSummary, ShardSummary)


def work_folder(output: str) -> str:
    """Returns where the stage that writes to `output` keeps its unfinished work."""
    return storage.join(output, "unfinished")


def part_file(work: str, index: int, ending: str) -> str:
    """Returns one of the files of part `index`."""
    return storage.join(work, f"part-{index:05d}.{ending}")


def shard_file(work: str, split: str, index: int, ending: str) -> str:
    """Returns one of the files of shard `index` of `split`."""
    return storage.join(work, f"{split}-{index:05d}.{ending}")


def read_summary(place: str, model: type[Summary], key: str) -> Summary | None:
    """Returns the summary at `place` if the work it stands for is done and was made of `key`."""
    if not storage.exists(place):
        return None
    try:
        summary = model.model_validate(storage.read_json(place))
    except ValidationError:  # written by another version of this code, whose files mean something else
        return None
    return summary if summary.key == key else None


def write_summary(place: str, summary: BaseModel) -> None:
    """Commits a piece of work."""
    storage.write_json_atomic(place, summary.model_dump(mode="json"))


def write_array(place: str, array: np.ndarray) -> None:
    """Writes the elements of `array`, little-endian, without a header."""
    storage.write_bytes_atomic(place, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def read_array(place: str, dtype: str) -> np.ndarray:
    """Returns what `write_array` wrote, flat."""
    return np.frombuffer(storage.read_bytes(place), dtype=np.dtype(dtype).newbyteorder("<"))
