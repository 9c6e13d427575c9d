"""One run at a time in a workspace, in a folder and in an object store; no lock outlives its holder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipelines.errors import WorkspaceBusyError
from pipelines.run import lock
from pipelines.run.lock import workspace_lock
from pipelines.system import storage


@pytest.fixture(params=["folder", "store"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "folder" else f"memory://locks{tmp_path}/run"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A workspace in a store, where a lease ends after a blink."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.3)
    return f"memory://leases{tmp_path}/run"


def write_lease(workspace: str, *, ends: float) -> None:
    lease = {"process": 1, "host": "elsewhere", "since": "then", "token": "theirs", "ends": ends}
    storage.write_json_atomic(storage.join(workspace, ".lock.json"), lease)


def test_a_held_workspace_is_refused_with_the_holders_name(workspace: str) -> None:
    with (
        workspace_lock(workspace),
        pytest.raises(WorkspaceBusyError, match=f"in use by process {os.getpid()} on "),
        workspace_lock(workspace),
    ):
        pass


def test_a_released_workspace_can_be_held_again_also_after_an_error(workspace: str) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), workspace_lock(workspace):
            raise ZeroDivisionError


def test_a_lease_that_its_dead_holder_left_ends_and_is_taken_over(store: str) -> None:
    write_lease(store, ends=time.time() + 60)
    with pytest.raises(WorkspaceBusyError, match="process 1 on elsewhere"), workspace_lock(store):
        pass
    write_lease(store, ends=time.time() - 1)
    with workspace_lock(store) as held:
        held.confirm()
    assert not storage.exists(storage.join(store, ".lock.json"))


def test_a_lease_is_renewed_for_as_long_as_it_is_held(store: str) -> None:
    with workspace_lock(store) as held:
        time.sleep(3 * lock.LEASE_SECONDS)
        held.confirm()
        with pytest.raises(WorkspaceBusyError), workspace_lock(store):
            pass


def test_a_run_that_lost_its_lease_finishes_nothing_and_leaves_the_other_in_peace(store: str) -> None:
    with workspace_lock(store) as held:
        write_lease(store, ends=time.time() + 60)
        with pytest.raises(WorkspaceBusyError, match="not renewed in time"):
            held.confirm()
        time.sleep(lock.LEASE_SECONDS)
    assert storage.read_json(storage.join(store, ".lock.json"))["token"] == "theirs"
