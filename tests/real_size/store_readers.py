"""What processes do at once with an object store, run by `tests.distributed`; its imports are few."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from pipelines.models.files import local_folder
from pipelines.prepare.shards import ShardReader
from pipelines.system import node_cache
from pipelines.train.worker.checkpoints import local_copy
from pipelines.train.worker.group import Group
from tests.real_size.counted_files import LOG


def load_weights(rank: int, ranks: int, log: str, cache: str, place: str) -> tuple[str, list[str]]:
    _use(log, cache)
    folder = local_folder(place)
    return str(folder), sorted(path.name for path in folder.iterdir())


def read_rows(
    rank: int, ranks: int, log: str, cache: str, place: str, rows: Sequence[int]
) -> list[list[int]]:
    _use(log, cache)
    reader = ShardReader(place)
    return [reader.row(row).input_ids.tolist() for row in rows]


def resume(rank: int, ranks: int, log: str, cache: str, place: str) -> bytes:
    _use(log, cache)
    group = Group(rank=rank, size=ranks, local_rank=rank, node=0, device=torch.device("cpu"))
    with local_copy(place, group) as folder:
        content = (folder / "engine" / "state.pt").read_bytes()
    group.barrier()
    assert not folder.exists(), "a checkpoint stays on this machine's disk"
    return content


def _use(log: str, cache: str) -> None:
    """A process that was forked from a server does not have the test's environment."""
    os.environ[LOG], os.environ[node_cache.VARIABLE] = log, cache
