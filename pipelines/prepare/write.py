"""Writes a shard: gathers planned segments from the parts' tokens; runs on Ray workers, a shard at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from pipelines.errors import EspanError
from pipelines.prepare.parts import (
    ShardSummary,
    part_file,
    read_array,
    read_summary,
    shard_file,
    write_summary,
)
from pipelines.prepare.shards import ShardEntry, Split, write_shard
from pipelines.recipe.keys.common import Packing
from pipelines.system.streams import open_binary

PLAN_COLUMNS = 4
"""A plan's columns, one segment a line, in the order in which rows hold them: the row within the shard, the
part, the first token within the part, how many tokens."""


@dataclass(frozen=True)
class ShardTask:
    """What to do for one shard.

    Attributes:
        split: names the plan in `work`.
        index: ordinal of the shard in its folder.
        key: what the shard is made of.
        folder: where the shard goes.
        work: where plan and parts lie.
    """

    split: Split
    index: int
    key: str
    folder: str
    work: str
    sequence_length: int
    packing: Packing


def write_planned_shard(task: ShardTask) -> ShardEntry:
    """Writes the shard, or finds it written by an earlier run.

    Raises:
        EspanError: a part is shorter than the plan says.
    """
    place = shard_file(task.work, task.split, task.index, "json")
    if done := read_summary(place, ShardSummary, task.key):
        return done.entry
    plan = read_array(shard_file(task.work, task.split, task.index, "plan"), "i8").reshape(-1, PLAN_COLUMNS)
    input_ids = gather(task.work, plan).reshape(-1, task.sequence_length)
    if task.packing == "concatenate":
        doc_lengths = [[task.sequence_length]] * len(input_ids)
    else:
        bounds = np.searchsorted(plan[:, 0], np.arange(len(input_ids) + 1)).tolist()
        doc_lengths = [plan[start:stop, 3].tolist() for start, stop in pairwise(bounds)]
    entry = write_shard(task.folder, task.index, input_ids, doc_lengths)
    write_summary(place, ShardSummary(key=task.key, entry=entry))
    return entry


def gather(work: str, plan: np.ndarray) -> np.ndarray:
    """Returns the tokens of the plan's segments in order, int32; each part is read from front to back."""
    ends = np.cumsum(plan[:, 3])
    tokens = np.empty(int(ends[-1]), dtype="<i4")
    for part in np.unique(plan[:, 1]).tolist():
        (lines,) = np.nonzero(plan[:, 1] == part)
        path = part_file(work, part, "tokens")
        with open_binary(path) as stream:
            for line in lines[np.argsort(plan[lines, 2], kind="stable")].tolist():
                _, _, first, length = plan[line].tolist()
                _read_into(stream, first * 4, tokens[ends[line] - length : ends[line]], path)
    return tokens


def _read_into(stream: BinaryIO, position: int, target: np.ndarray, path: str) -> None:
    stream.seek(position)
    content = stream.read(target.nbytes)
    if len(content) != target.nbytes:
        raise EspanError(
            f"{path}: ends before byte {position + target.nbytes:,}; move its folder away and run again"
        )
    target[:] = np.frombuffer(content, dtype="<i4")
