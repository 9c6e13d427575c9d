"""Explains in one line why something could not be written, and where; recovers the system's own error where
a library dropped it."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import EspanError
from pipelines.system import storage
from pipelines.system.machine import bytes_text, free_disk

_REASONS = {
    errno.ENOSPC: "cannot be written: no space left",
    errno.EDQUOT: "cannot be written: the disk quota is used up",
    errno.EFBIG: "cannot be written: larger than one file may be here (`ulimit -f`)",
    errno.EROFS: "cannot be written: the file system is read-only",
    errno.EIO: "the disk fails (input/output error)",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EMFILE: "cannot be opened: too many open files; raise the limit with `ulimit -n`",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
# pyarrow and Rust libraries (safetensors, tokenizers) keep the number in their text alone.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
# torch (2.13, caffe2/serialize/inline_container.cc) says only that its file did not grow as it should.
_TORCH_WRITER = re.compile(r"inline_container|PytorchStreamWriter|file write failed|iostream error")
_PROBE_BYTES = 1 << 20


def write_problem(error: BaseException, place: str | None, needed: int | None = None) -> str | None:
    """Returns one line on why files could not be written (or opened), or None if `error` is something else.

    Args:
        error: what was raised; its causes are examined too.
        place: where the writing went, a path or a URL, if known; the error's own file is named instead if it
            lies there.
        needed: bytes that were to be written there, if known.
    """
    number, file = _cause(error, place)
    if number not in _REASONS:
        return None
    where = file or place
    text = f"{where or 'the disk'}: {_REASONS[number]}"
    if number not in _FULL or where is None or storage.is_remote(where):
        return text
    text += f", {_free_text(where)}"
    if needed is not None:
        text += f" and about {bytes_text(needed)} needed"
    return f"{text}; free some or use a larger disk, then run the same command again to go on"


@contextmanager
def explained_writes(place: str, needed: int | None = None) -> Iterator[None]:
    """Turns a failure to write to `place` into an `EspanError` of one line; see `write_problem`."""
    try:
        yield
    except EspanError:
        raise
    except Exception as error:
        problem = write_problem(error, place, needed)
        if problem is None:
            raise
        raise EspanError(problem) from error


def _cause(error: BaseException, place: str | None) -> tuple[int | None, str | None]:
    """Returns the system's error number and the file it names, from the chain that ends in `error`."""
    for each in _chain(error):
        if isinstance(each, EspanError):
            break  # which has said what it is about
        if isinstance(each, OSError) and each.errno in _REASONS:
            return each.errno, _file(each, place)
        if found := _NUMBER.search(str(each)):
            return int(found.group(1) or found.group(2)), None
        if place and not storage.is_remote(place) and _TORCH_WRITER.search(str(each)):
            number = _probe(place)
            if number is not None:
                return number, None
    return None, None


def _file(error: OSError, place: str | None) -> str | None:
    """Returns the file that could not be written; of a copy that is the second one."""
    name = error.filename2 or error.filename
    if not isinstance(name, str | bytes) or not name:
        return None
    file = os.fsdecode(name)
    if place is None or storage.is_remote(place) or error.errno not in _FULL:
        return file
    return file if Path(file).absolute().is_relative_to(storage.local_path(place).absolute()) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # Ray wraps what a remote task raised in an error of its own.
        error = getattr(error, "cause", None) or error.__cause__


def _probe(place: str) -> int | None:
    """Returns the error number that writing a little to `place` ends in; None if it can be written."""
    try:
        with tempfile.TemporaryFile(dir=_existing(place)) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None


def _free_text(place: str) -> str:
    folder = _existing(place)
    if os.statvfs(folder).f_files and not os.statvfs(folder).f_favail:
        return "it holds as many files as it can"
    return f"{bytes_text(free_disk(folder))} free"


def _existing(place: str) -> Path:
    folder = storage.local_path(place).absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder
