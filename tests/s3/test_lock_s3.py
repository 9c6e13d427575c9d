"""The workspace lock on a store with conditional writes: of several runs at once, one gets it."""

from __future__ import annotations

import threading
import time

from pipelines.errors import WorkspaceBusyError
from pipelines.run.lock import workspace_lock
from pipelines.system import storage

CONTENDERS = 6


def test_only_one_of_many_gets_the_workspace(bucket: str) -> None:
    workspace = storage.join(bucket, "run")
    held: list[str] = []
    refused: list[str] = []
    start, everyone_tried = threading.Barrier(CONTENDERS), threading.Event()

    def contend() -> None:
        start.wait()
        try:
            with workspace_lock(workspace) as lock:
                lock.confirm()
                held.append(workspace)
                everyone_tried.wait(60)
        except WorkspaceBusyError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(CONTENDERS)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(held) + len(refused) < CONTENDERS and time.monotonic() < deadline:
        time.sleep(0.01)
    everyone_tried.set()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, CONTENDERS - 1)
    assert not storage.exists(storage.join(workspace, ".lock.json"))


def test_a_lease_whose_holder_was_killed_is_taken_over_when_it_ends(bucket: str) -> None:
    lease = {"process": 1, "host": "gone", "since": "then", "token": "theirs", "ends": time.time() - 1}
    storage.write_json_atomic(storage.join(bucket, ".lock.json"), lease)
    with workspace_lock(bucket) as lock:
        lock.confirm()
