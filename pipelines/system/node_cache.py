"""This machine's downloads from object stores, made once for all of its processes.

    $ESPAN_CACHE, or ~/.cache/espan
        models/KEY/         files of a model            shards/SHA256.arrow     a shard of a corpus
        tokenizers/KEY/     files of a tokenizer        checkpoints/KEY/        a checkpoint to resume from
        KIND/.NAME.partial  a download under way
        locks/KIND/...      empty files, locked with `flock`: one of each name above
        answers/            of another kind: see `pipelines.system.answers`

A process that wants an entry locks it. The first downloads it, beside its place, and renames it when it is
whole; the others wait and find it. The kernel releases a lock when its process ends, however it ends, and the
next goes on with the files that had arrived. A download has a lock of its own, in whose line processes wait:
who waited for the entry's own to be free would wait for those that keep the entry as long as they live.

Clean-up: before a download, entries that no process has used for 30 days are removed and, if the disk is
still too small, the least recently used ones. Resumed checkpoints are removed once they are read. The
folder may be removed at any time when nothing runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import EspanError
from pipelines.system import storage
from pipelines.system.filesystems import filesystem
from pipelines.system.machine import bytes_text, free_disk

VARIABLE = "ESPAN_CACHE"
_LOCKS, _PARTIAL = "locks", ".partial"
_UNUSED_SECONDS = 30 * 24 * 3600
_MARGIN_BYTES = 16 << 20

_kept = ExitStack()  # never closed: its locks end with the process
_kept_paths: set[Path] = set()


def cache_root() -> Path:
    """Returns the folder of everything that is kept."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/espan").expanduser().absolute()


def folder(kind: str, place: str, names: Collection[str]) -> Path:
    """Returns a local folder with the files `names` of a remote one, kept while this process lives.

    Raises:
        EspanError: a file is not there, or there is no room for it here.
    """
    remote = _RemoteFolder.of(place, names)
    path = cache_root() / kind / remote.key
    if path not in _kept_paths:
        _kept.enter_context(borrowed(kind, remote.key, remote.size, remote.download))
        _kept_paths.add(path)
    return path


@contextmanager
def borrowed_folder(kind: str, place: str) -> Iterator[Path]:
    """Yields a local folder with everything below a remote one, which stays meanwhile.

    Raises:
        EspanError: nothing is there, or there is no room for it here.
    """
    remote = _RemoteFolder.of(place)
    with borrowed(kind, remote.key, remote.size, remote.download) as path:
        yield path


@contextmanager
def borrowed(
    kind: str, name: str, size: int, fill: Callable[[Path], None], root: Path | None = None
) -> Iterator[Path]:
    """Yields the cached file or folder `kind/name`, which nobody removes meanwhile.

    Args:
        kind: `models`, `shards`, ...
        name: identifies the content.
        size: bytes to make room for.
        fill: makes the file or folder at the path it is given, where what a killed process had downloaded may
            lie; one process at a time calls it, and none if the entry is there.
        root: the cache's folder, if another than `cache_root()`.

    Raises:
        EspanError: there is no room, or the cache cannot be written.
    """
    root = root or cache_root()
    target = root / kind / name
    with _lock_file(target) as lock:
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if target.exists():
                break
            fcntl.flock(lock, fcntl.LOCK_UN)
            with _lock_file(_unfinished(target)) as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                if not target.exists():  # else another process was faster
                    fcntl.flock(lock, fcntl.LOCK_EX)  # nobody keeps what is not there
                    _download(target, size, fill, root)
            # Between here and the shared lock another process may remove it: look again.
        with contextlib.suppress(PermissionError):  # another user's entry, in a cache that is shared
            os.utime(target)
        yield target


def discard(path: Path) -> None:
    """Removes an entry, or what is left of its download, unless another process is using it."""
    name = path.name.removeprefix(".").removesuffix(_PARTIAL) if path.name.startswith(".") else path.name
    with _lock_file(path.with_name(name)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if path.is_dir():
            # Renamed first: a half-removed entry must not look complete.
            going = _unfinished(path.with_name(name))
            if path != going:
                shutil.rmtree(going, ignore_errors=True)
                path.rename(going)
            shutil.rmtree(going)
        else:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _RemoteFolder:
    """Files below a folder of an object store, as they are now: name -> (size, mark of the content)."""

    place: str
    files: dict[str, tuple[int, str]]

    @classmethod
    def of(cls, place: str, names: Collection[str] | None = None) -> _RemoteFolder:
        file_system, root = filesystem(place)
        found = {
            os.path.relpath(path, root): (int(entry["size"]), _mark(entry))
            for path, entry in file_system.find(root, detail=True).items()
        }
        wanted = found if names is None else {name: found[name] for name in names if name in found}
        if not wanted or (names is not None and len(wanted) < len(set(names))):
            lost = "anything" if names is None else ", ".join(sorted(set(names) - wanted.keys()))
            raise EspanError(f"{place} does not hold {lost}")
        return cls(place, dict(sorted(wanted.items())))

    @property
    def key(self) -> str:
        """Identifies the content; other content in the same place has another key."""
        return hashlib.sha256(repr((self.place, self.files)).encode()).hexdigest()[:32]

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.files.values())

    def download(self, folder: Path) -> None:
        """Copies the files into a local folder; those that are there already, whole, are left alone."""
        file_system, root = filesystem(self.place)
        for name, (size, _) in self.files.items():
            target = folder / name
            if target.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            arriving = target.with_name(f"{target.name}{_PARTIAL}")
            file_system.get_file(storage.join(root, name), str(arriving))
            if arriving.stat().st_size != size:
                raise EspanError(
                    f"{storage.join(self.place, name)} arrived cut short, or changed meanwhile; run the same "
                    "command again"
                )
            arriving.rename(target)


def _mark(entry: dict[str, object]) -> str:
    return str(next((entry[key] for key in ("ETag", "etag", "mtime", "created") if entry.get(key)), None))


@contextmanager
def _lock_file(target: Path) -> Iterator[int]:
    """Yields a descriptor to lock, not yet locked; closing it releases the lock."""
    kind = target.parent
    file = kind.parent / _LOCKS / kind.name / target.name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        kind.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise EspanError(
            f"the cache in {kind.parent} cannot be written ({error.strerror}); set {VARIABLE} to one that can"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _download(target: Path, size: int, fill: Callable[[Path], None], root: Path) -> None:
    unfinished = _unfinished(target)
    _make_room(root, size - _bytes_in(unfinished), target)
    _fill(unfinished, fill)
    os.replace(unfinished, target)


def _fill(unfinished: Path, fill: Callable[[Path], None]) -> None:
    try:
        fill(unfinished)
        # On the disk before the rename is: a machine that loses power leaves nothing half-written either.
        for file in [unfinished] if unfinished.is_file() else unfinished.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise EspanError(
            f"the disk of the cache in {unfinished.parent.parent} is full; free some of it, or set "
            f"{VARIABLE} to a folder on a larger one"
        ) from error


def _make_room(root: Path, size: int, coming: Path) -> None:
    needed = size + _MARGIN_BYTES
    entries = [entry for entry in _entries(root) if coming.name not in entry.name]
    for entry in sorted(entries, key=_last_used):
        if time.time() - _last_used(entry) < _UNUSED_SECONDS and free_disk(root) >= needed:
            break
        discard(entry)
    if (free := free_disk(root)) < needed:
        raise EspanError(
            f"the cache in {root} needs {bytes_text(needed)} for {coming.parent.name}, and "
            f"{bytes_text(free)} are free; free some, or set {VARIABLE} to a folder on a larger disk"
        )


def _entries(root: Path) -> list[Path]:
    """Returns what was downloaded below `root`, whole or not: each entry has its lock, others have none."""
    locks = (lock for kind in (root / _LOCKS).iterdir() for lock in kind.iterdir())
    return [path for lock in locks if (path := root / lock.parent.name / lock.name).exists()]


def _last_used(entry: Path) -> float:
    return entry.stat().st_mtime if entry.exists() else 0.0


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}{_PARTIAL}")


def _bytes_in(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
