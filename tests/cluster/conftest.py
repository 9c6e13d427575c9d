"""A real Ray head with token authentication, in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import typer
from typer.testing import CliRunner, Result

from cluster import jobs

READY_SECONDS = 240.0
STOP_SECONDS = 3.0


@dataclass(frozen=True)
class RayHead:
    """Where the head's dashboard answers, and the files with its token and with a wrong one."""

    address: str
    token_path: Path
    wrong_token_path: Path


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A head that takes jobs from whoever has its token; ended by its process group, alone."""
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "token").write_text("3f6c" * 8)
    (secrets / "wrong").write_text("0000" * 8)
    scratch = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets lie below it: their paths must stay short
    port, client_port = _free_ports(2)
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port=0"),
        *(
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={port}",
            f"--ray-client-server-port={client_port}",
        ),
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        *(
            "--num-cpus=2",
            "--object-store-memory=100000000",
            f"--temp-dir={scratch}",
            "--disable-usage-stats",
        ),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(secrets / "token"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    with (secrets / "head.log").open("wb") as log:
        head = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_ready(head, address, secrets / "head.log")
        yield RayHead(address, secrets / "token", secrets / "wrong")
    finally:
        _end_group(head)
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def no_ambient_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address or token comes from the machine the test runs on."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def espan(ray_head: RayHead, no_ambient_ray: None) -> Callable[..., Result]:
    """Runs a job command with the head's address and token; an error comes back as `exception`."""
    application = typer.Typer()
    for command in (jobs.submit, jobs.status, jobs.logs, jobs.stop):
        application.command()(command)

    def run(
        *words: str, token_path: Path | None = ray_head.token_path, address: str = ray_head.address
    ) -> Result:
        token = [] if token_path is None else ["--token-path", str(token_path)]
        return CliRunner().invoke(application, [*words, "--address", address, *token])

    return run


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_ready(head: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        with contextlib.suppress(requests.exceptions.RequestException):
            if requests.get(f"{address}/api/authentication_mode", timeout=5).ok:
                return
        time.sleep(0.3)
    raise RuntimeError(f"the Ray head did not become ready:\n{log.read_text(errors='replace')[-4000:]}")


def _end_group(head: subprocess.Popen[bytes]) -> None:
    """Ends the head and every process it started that did not leave its group."""
    os.killpg(head.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()
