"""One run at a time in a workspace, without a lock that outlives a killed process.

In a local folder the lock is `flock` on `<workspace>/.lock`: the kernel releases it when the process ends,
however it ends; the file's content only says who holds it. An object store has nothing of the kind, so there
the lock is a lease: `<workspace>/.lock.json` names its holder and the time at which it ends (seconds since
1970), the holder renews it, and a lease that has ended may be taken over. Clocks of machines that share a
workspace must agree to within some seconds.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from pipelines.errors import EspanError, WorkspaceBusyError
from pipelines.system import storage
from pipelines.system.disk import explained_writes

logger = logging.getLogger(__name__)

LEASE_SECONDS = 90.0
"""How long a killed run keeps others out of a workspace in an object store."""


class WorkspaceLock(Protocol):
    """A held lock."""

    def confirm(self) -> None:
        """Makes sure the lock is still held; called before anything is declared finished.

        Raises:
            WorkspaceBusyError: it was lost and another run may be at work.
        """


@contextmanager
def workspace_lock(workspace: str) -> Iterator[WorkspaceLock]:
    """Holds `workspace` for the body.

    Raises:
        WorkspaceBusyError: another live process holds it; the message names it.
    """
    with _lease(workspace) if storage.is_remote(workspace) else _file_lock(workspace) as lock:
        yield lock


def _holder() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _busy(workspace: str, holder: Any) -> WorkspaceBusyError:
    who = "another run"
    if isinstance(holder, dict) and "process" in holder:
        who = f"process {holder['process']} on {holder['host']} (since {holder['since']})"
    return WorkspaceBusyError(
        f"{workspace} is in use by {who}; wait for it, stop it, or choose another workspace"
    )


class _FileLock:
    """An `flock`, which cannot be lost while the process lives."""

    def confirm(self) -> None:
        pass


@contextmanager
def _file_lock(workspace: str) -> Iterator[_FileLock]:
    storage.make_folder(workspace)
    # Not inheritable (Python's default): a child that outlives this process must not keep the lock.
    descriptor = os.open(storage.local_path(storage.join(workspace, ".lock")), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(workspace, _parsed(os.pread(descriptor, 4096, 0))) from None
        except OSError as error:
            raise EspanError(
                f"{workspace} cannot be locked ({error}); use a folder on a local disk"
            ) from error
        with explained_writes(workspace):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_holder()).encode(), 0)
        yield _FileLock()
    finally:
        os.close(descriptor)


def _parsed(content: bytes) -> Any:
    """Returns what a lock file says; None while its holder is still writing it."""
    try:
        return json.loads(content)
    except ValueError:
        return None


class _Lease:
    """A lease object in a store, renewed by a thread until it is released."""

    def __init__(self, workspace: str) -> None:
        self.workspace, self.place = workspace, storage.join(workspace, ".lock.json")
        self.mine = {**_holder(), "token": uuid.uuid4().hex}
        self.ends = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="workspace-lease", daemon=True)

    def take(self) -> None:
        """Creates the object, at which only one of several can succeed; removes one that has ended, once."""
        for _ in range(2):
            ends = time.time() + LEASE_SECONDS
            if storage.create_exclusively(self.place, json.dumps({**self.mine, "ends": ends}).encode()):
                self.ends = ends
                self._thread.start()
                return
            other = self._current()
            if other.get("ends", 0) > time.time():
                raise _busy(self.workspace, other)
            storage.remove(self.place)
        raise _busy(self.workspace, None)

    def confirm(self) -> None:
        if self.ends < time.time() or self._current().get("token") != self.mine["token"]:
            what = "the lease was not renewed in time and another run may have taken it; run again"
            raise WorkspaceBusyError(f"{self.workspace}: {what}")

    def release(self) -> None:
        """Stops renewing and removes the object if it is still this process's."""
        self._stop.set()
        self._thread.join()
        if self._current().get("token") == self.mine["token"]:
            storage.remove(self.place)

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_SECONDS / 3):
            ends = time.time() + LEASE_SECONDS
            try:
                if self._current().get("token") != self.mine["token"]:
                    self.ends = 0.0
                    return
                storage.write_json_atomic(self.place, {**self.mine, "ends": ends})
            except (
                Exception
            ) as error:  # whatever a store's client raises: the next round retries, `confirm` decides
                logger.warning("the lease of %s was not renewed: %s", self.workspace, error)
            else:
                self.ends = ends

    def _current(self) -> dict[str, Any]:
        try:
            found = storage.read_json(self.place)
        except FileNotFoundError:
            return {}
        return found if isinstance(found, dict) else {}


@contextmanager
def _lease(workspace: str) -> Iterator[_Lease]:
    lease = _Lease(workspace)
    lease.take()
    try:
        yield lease
    finally:
        lease.release()
