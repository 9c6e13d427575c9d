"""`espan submit|status|logs|stop` against a real head that wants a token."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from typer.testing import Result

from cluster import jobs
from cluster.connection import connect, head_address
from pipelines.errors import EspanError

if TYPE_CHECKING:
    from conftest import RayHead

Command = Callable[..., Result]


@pytest.fixture
def python_job(ray_head: RayHead) -> Callable[[str], str]:
    """Submits a line of Python as a job, and returns the job's name."""

    def submit(code: str) -> str:
        client = connect(ray_head.address, ray_head.token_path)
        name = jobs.job_name("python")
        return client.submit_job(
            entrypoint=f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}", submission_id=name
        )

    return submit


def refusal(result: Result) -> str:
    assert isinstance(result.exception, EspanError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_logs_follow_a_job_to_its_end_and_leave_with_its_code(
    espan: Command, python_job: Callable[[str], str]
) -> None:
    count = "import time\nfor i in range(300): print('line', i, flush=True); time.sleep(0.005)"
    succeeded, failed = python_job(count), python_job("print('before'); raise SystemExit(7)")
    followed = espan("logs", succeeded, "--follow")
    assert followed.exit_code == 0
    assert [line for line in followed.stdout.splitlines() if line.startswith("line")] == [
        f"line {i}" for i in range(300)
    ]
    assert f"{succeeded} SUCCEEDED" in followed.stderr
    followed = espan("logs", failed, "--follow")
    assert followed.exit_code == 7
    assert "before" in followed.stdout.splitlines()
    assert f"{failed} FAILED" in followed.stderr
    assert espan("status", succeeded).exit_code == 0
    status = espan("status", failed)
    assert status.exit_code == 7
    assert status.stdout.startswith(f"{failed} FAILED")


def test_stop_ends_a_running_job_and_only_a_running_job(
    espan: Command, python_job: Callable[[str], str]
) -> None:
    job = python_job("import time\nprint('started', flush=True)\ntime.sleep(600)")
    deadline = time.monotonic() + 60
    while "started" not in espan("logs", job).stdout.splitlines():
        assert time.monotonic() < deadline
        time.sleep(0.3)
    running = espan("status", job)
    assert (running.exit_code, running.stdout.split()[:2]) == (0, [job, "RUNNING"])
    assert espan("stop", job).exit_code == 0
    stopped = espan("status", job)
    assert (stopped.exit_code, stopped.stdout.split()[:2]) == (1, [job, "STOPPED"])
    ended = python_job("pass")
    assert espan("logs", ended, "--follow").exit_code == 0
    assert "had ended by itself, SUCCEEDED" in refusal(espan("stop", ended))


def test_without_the_right_token_nothing_is_told_or_done(espan: Command, ray_head: RayHead) -> None:
    for words in (("status", "any"), ("logs", "any"), ("stop", "any")):
        assert "wants a token" in refusal(espan(*words, token_path=None))
        assert "refused the token" in refusal(espan(*words, token_path=ray_head.wrong_token_path))


def test_the_token_may_come_from_the_environment(
    espan: Command, ray_head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_head.token_path))
    assert "no job absent" in refusal(espan("status", "absent", token_path=None))


def test_an_unknown_job_is_named_with_the_nearest_known_one(
    espan: Command, python_job: Callable[[str], str]
) -> None:
    job = python_job("pass")
    assert f"no job {job}x" in (message := refusal(espan("status", f"{job}x")))
    assert f"did you mean '{job}'?" in message


def test_the_given_address_goes_before_the_environment(
    ray_head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert head_address(None) == "http://127.0.0.1:1"
    assert connect(ray_head.address, ray_head.token_path).get_address() == ray_head.address
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:1"


def test_no_proxy_stands_before_a_head_on_this_machine(
    espan: Command, python_job: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    job = python_job("print('reached')")
    assert espan("logs", job, "--follow").stdout.endswith("\nreached\n")
    assert espan("status", job).exit_code == 0


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:9", "no Ray head answers at http://127.0.0.1:9"),
        ("ray://127.0.0.1:10001", "not the head's dashboard"),
        ("http://[::1", "no"),
    ],
)
def test_an_address_without_a_head_is_refused(espan: Command, address: str, reason: str) -> None:
    assert reason in refusal(espan("status", "any", address=address))
