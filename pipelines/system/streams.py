"""Files read and written piece by piece, local or in an object store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from pipelines.system.filesystems import filesystem
from pipelines.system.locations import is_remote, local_path


def open_binary(place: str, block_bytes: int | None = None) -> BinaryIO:
    """Opens a file for reading; `block_bytes` are fetched from an object store at a time."""
    file_system, path = filesystem(place)
    options = {} if block_bytes is None else {"block_size": block_bytes}
    return cast("BinaryIO", file_system.open(path, "rb", **options))


def read_range(place: str, start: int, stop: int) -> bytes:
    """Returns bytes `start` ... `stop - 1` of a file."""
    file_system, path = filesystem(place)
    return bytes(file_system.cat_file(path, start=start, end=stop))


def first_bytes(files: Sequence[str], size: int) -> Iterator[tuple[str, bytes]]:
    """Yields files that lie in one place, and the first bytes of each, at most `size`."""
    if not files:
        return
    file_system, _ = filesystem(files[0])
    paths = [filesystem(file)[1] for file in files]
    ranges = [0] * len(files), [size] * len(files)
    yield from zip(files, file_system.cat_ranges(paths, *ranges, on_error="raise"), strict=True)


@contextmanager
def atomic_stream(place: str) -> Iterator[BinaryIO]:
    """Opens a file of any size for writing; it appears at `place` when the block ends without an error."""
    remote = is_remote(place)
    folder = None if remote else local_path(place).parent
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".writing-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(descriptor)
        if remote:
            file_system, path = filesystem(place)
            file_system.put_file(temporary, path)
        else:
            os.replace(temporary, local_path(place))
    finally:
        Path(temporary).unlink(missing_ok=True)
