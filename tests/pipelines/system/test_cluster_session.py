"""Ray sessions: started on first use, ended by who started them; one clear line when Ray does not start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipelines.errors import EspanError
from pipelines.system import cluster_session
from pipelines.system.cluster_session import close_ray_session, in_ray_job, ray_session

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster_session, "_session", None)
    # What tests in other files started stays out of this, and running.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    yield
    close_ray_session()


def test_too_little_memory_is_one_line_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_session, "available_memory", lambda: 300 << 20)
    with pytest.raises(
        EspanError, match=r"^too little memory to start Ray: 300\.0 MiB free, 1\.0 GiB needed; "
    ):
        ray_session()


def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_port(**_: object) -> None:
        raise RuntimeError("No available ports.\nTraceback ...")

    monkeypatch.setattr(ray, "init", no_port)
    with pytest.raises(EspanError) as caught:
        ray_session()
    assert str(caught.value) == (
        "Ray did not start on this machine: No available ports; `espan doctor` checks ports, memory and disk"
    )


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_no_cluster_answers_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"{scheme}127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(EspanError, match=rf"^no Ray cluster answers at {address}: .*unset RAY_ADDRESS"):
            ray_session()


def test_a_dashboards_address_is_not_taken_for_a_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(EspanError, match="which `espan submit --address` takes; start one, or unset"):
        ray_session()


def test_closing_before_anything_started_does_nothing() -> None:
    close_ray_session()


def test_a_ray_job_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_ray_job()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert in_ray_job()


LIFE = """
import os, signal, time
from pipelines.system.capacity import cluster_capacity
from pipelines.system.cluster_session import close_ray_session, ray_session
from pipelines.run.stop_signals import StopRequested, stop_signals

try:
    with stop_signals():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        session = ray_session()
        assert session is ray_session() and session.started_here and session.address == "local", session
        (machine,) = cluster_capacity().node_types
        assert machine.resources["CPU"] == len(os.sched_getaffinity(0))
        assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

        import ray
        assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
        ray.get(ray.remote(lambda: print(file=open(os.environ["STARTED"], "w")) or time.sleep(600)).remote())
except StopRequested as stop:
    print("stopped by", stop.name)
close_ray_session()
assert not ray.is_initialized()
"""


def test_a_local_session_starts_works_and_ends_also_while_it_waits_for_ray(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    environment.pop("RAY_AUTH_MODE", None)
    started = tmp_path / "started"
    environment["STARTED"] = str(started)
    command = [sys.executable, "-c", LIFE]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            while not started.exists() and process.poll() is None:
                time.sleep(0.1)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, printed) == (0, "stopped by SIGTERM\n"), errors
    assert not (tmp_path / ".ray" / "auth_token").exists()


def test_a_start_that_timed_out_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[object] = []

    def slow(**options: object) -> None:
        attempts.append(options)
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(EspanError, match="timed out during startup; `espan doctor`"):
        ray_session()
    assert len(attempts) == 2
