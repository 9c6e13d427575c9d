"""Checkpoints: one folder per step, which counts only once its `COMMITTED` file is there.

    checkpoints/step-00000050/
        COMMITTED      written last; lists every file with its size
        state.json     step, tokens seen, data cursor, random-number counters, workers, ZeRO stage
        engine/        optimizer, engine state and trained weights, as DeepSpeed writes them
        adapter/       the adapter, as PEFT writes it (absent when every parameter trains)

In a local run workers write into the folder itself, which must be shared between nodes. For an object store
each node writes to its own disk and uploads.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import EspanError
from pipelines.system import node_cache, storage
from pipelines.system.precision import Settled
from pipelines.train.worker.group import Group

FORMAT = "espan-checkpoint/1"
COMMITTED = "COMMITTED"
STATE_FILE = "state.json"
ENGINE_FOLDER = "engine"
ADAPTER_FOLDER = "adapter"
_PREFIX = "step-"
_CACHED = "checkpoints"


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint says about the run besides tensors.

    Attributes:
        step: optimizer updates done.
        tokens_seen: tokens in all rows consumed.
        rows_consumed: the data cursor: the position in the stream of rows at which the next step starts.
        seed: every random number (row order, chunk sizes, random blocks, dropout) is a function of it and of
            a counter; there is no generator whose state would have to be kept.
        next_micro_batch: that counter's next value.
        workers: how many wrote the checkpoint; another number loads it through DeepSpeed's universal format.
        zero: DeepSpeed ZeRO stage, which cannot change during a training.
        precision: of weights and arithmetic. Checkpoints that do not say were written when it was fp32 unless
            a recipe asked for bf16.
    """

    step: int
    tokens_seen: int
    rows_consumed: int
    seed: int
    next_micro_batch: int
    workers: int
    zero: int
    precision: Settled = "fp32"
    format: str = field(default=FORMAT)


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: where it lies and what it says."""

    place: str
    state: TrainState


def checkpoint_name(step: int) -> str:
    """Returns the name of a step's folder."""
    return f"{_PREFIX}{step:08d}"


@dataclass(frozen=True)
class CheckpointStore:
    """All checkpoints of one training stage.

    Args:
        place: the folder (path or fsspec URL) that holds a folder per step.
    """

    place: str

    def newest(self) -> Checkpoint | None:
        """Returns the committed checkpoint of the highest step, or None; unfinished folders are passed over.

        Raises:
            EspanError: a committed checkpoint lost files or was written by something else.
        """
        for name in sorted(self._names(), reverse=True):
            place = storage.join(self.place, name)
            if storage.exists(storage.join(place, COMMITTED)):
                _check_files(place)
                return Checkpoint(place, _read_state(place))
        return None

    def save(self, state: TrainState, write: Callable[[Path], None], group: Group) -> str:
        """Writes one checkpoint; every worker calls it. Returns the checkpoint's place.

        Args:
            state: the content of `state.json`.
            write: writes this worker's files below the local folder it is given.
            group: the workers; the first commits, the first of each node makes that node's folder and uploads
                it.
        """
        place = storage.join(self.place, checkpoint_name(state.step))
        remote = storage.is_remote(place)
        folder = Path(self.written_to(state.step))
        if group.first_here if remote else group.first:
            # What an interrupted attempt left here was never committed.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        if group.first and remote:
            _remove(place)
        group.barrier()
        write(folder)
        if group.first:
            storage.write_json_atomic(str(folder / STATE_FILE), asdict(state))
        group.barrier()
        if remote and group.first_here:
            storage.upload_folder(folder, place)
            shutil.rmtree(folder)
        group.barrier()
        if group.first:
            _commit(place)
        group.barrier()
        return place

    def written_to(self, step: int) -> str:
        """Returns the local folder that workers write a step's checkpoint to, or first write it to."""
        place = storage.join(self.place, checkpoint_name(step))
        return str(_scratch_folder(place) if storage.is_remote(place) else storage.local_path(place))

    def remove_unfinished(self) -> None:
        """Removes what was never committed; no worker may be writing."""
        for name in self._names():
            if not storage.exists(storage.join(self.place, name, COMMITTED)):
                _remove(storage.join(self.place, name))

    def prune(self, keep: int) -> None:
        """Removes all but the newest `keep` committed checkpoints, and what was never committed."""
        committed = [
            name
            for name in sorted(self._names())
            if storage.exists(storage.join(self.place, name, COMMITTED))
        ]
        for name in set(self._names()) - set(committed[-keep:]):
            _remove(storage.join(self.place, name))

    def _names(self) -> list[str]:
        return [name for name in storage.list_names(self.place) if name.startswith(_PREFIX)]


@contextmanager
def local_copy(place: str, group: Group) -> Iterator[Path]:
    """Yields a local folder with a checkpoint's files: the place itself, or this node's one copy of it.

    Every worker calls it. The copy is gone afterwards: it is as large as the optimizer's whole state.
    """
    if not storage.is_remote(place):
        yield storage.local_path(place)
        return
    with ExitStack() as stack:
        folder = group.agree(lambda: stack.enter_context(node_cache.borrowed_folder(_CACHED, place)))
        yield folder
    group.barrier()
    if group.first_here:
        node_cache.discard(folder)


def _commit(place: str) -> None:
    """Makes every file durable, then writes the marker that lists them."""
    files = storage.file_sizes(place)
    if not storage.is_remote(place):
        for name in files:
            descriptor = os.open(storage.local_path(place) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    storage.write_json_atomic(storage.join(place, COMMITTED), {"format": FORMAT, "files": files})


def _check_files(place: str) -> None:
    found = storage.file_sizes(place)
    for name, size in storage.read_json(storage.join(place, COMMITTED))["files"].items():
        if found.get(name) != size:
            raise EspanError(
                f"checkpoint {place} is damaged: {name} has {found.get(name, 'no')} bytes instead of {size}; "
                "remove that checkpoint's folder to go on from the one before it"
            )


def _read_state(place: str) -> TrainState:
    content: dict[str, Any] = storage.read_json(storage.join(place, STATE_FILE))
    if content.get("format") != FORMAT:
        raise EspanError(f"{storage.join(place, STATE_FILE)}: not of format {FORMAT}")
    return TrainState(**content)


def _remove(place: str) -> None:
    """Removes a checkpoint, its marker first: a half-removed one must not look complete."""
    storage.remove(storage.join(place, COMMITTED))
    storage.remove_folder(place)


def _scratch_folder(place: str) -> Path:
    """Returns a folder on this node's disk, the same for all of the node's workers."""
    return Path(
        tempfile.gettempdir(), "espan-checkpoints", place.split("://", 1)[1].strip("/").replace("/", "-")
    )
