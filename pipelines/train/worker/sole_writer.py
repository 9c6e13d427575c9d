"""Only one training writes to a folder at a time, even while an earlier one is still being killed."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.errors import EspanError
from pipelines.system import storage

LOCK_FILE = ".training.lock"
PATIENCE_SECONDS = 60.0


@contextmanager
def sole_writer(folder: str, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Holds a local folder; the kernel releases it when the process dies, however it dies.

    When a driver is killed, its workers live on for a moment and might still write. An object store has no
    such lock; there the workspace's lease, which outlasts the workers of a killed driver, must suffice.

    Raises:
        EspanError: another process held the folder for `patience_seconds`.
    """
    if storage.is_remote(folder):
        yield
        return
    descriptor = os.open(storage.local_path(storage.join(folder, LOCK_FILE)), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + patience_seconds
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise EspanError(
                    f"{folder} is still being written by another training; stop it or wait for it to end"
                )
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
