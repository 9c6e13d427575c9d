"""What `espan doctor` finds, with machines that lack something."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster import doctor
from pipelines.system.machine import GIB


def test_a_machine_that_runs_these_tests_lacks_nothing_essential(tmp_path: Path) -> None:
    checks = doctor.examine(tmp_path)
    assert [check.name for check in checks if check.failed] == []
    assert {"python", "packages", "cores", "memory", "disk", "ports", "ray", "gpu", "terraform"} <= {
        check.name for check in checks
    }


def test_another_version_than_the_tested_one_is_named(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# tested together\npydantic==1.0.0\nabsent-package==2.0\ntyper\n")
    check = doctor.versions(pins)
    assert not check.failed
    assert "(tested: 1.0.0)" in check.found
    assert "absent-package" not in check.found


@pytest.mark.parametrize(
    ("free", "failed", "advice"), [(8, False, False), (2, False, True), (0.5, True, True)]
)
def test_too_little_memory_is_a_failure_and_little_is_a_note(
    free: float, failed: bool, advice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: int(free * GIB))
    check = doctor.memory()
    assert (check.failed, bool(check.advice)) == (failed, advice)


def test_no_port_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise OSError("Address already in use")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert "FAIL" in str(doctor.ports())
    assert "Address already in use" in str(doctor.ports())


def test_a_cluster_that_does_not_answer_is_a_failure() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert doctor.ray_cluster(f"127.0.0.1:{port}").failed
        listener.listen(1)
        assert not doctor.ray_cluster(f"127.0.0.1:{port}").failed
    assert not doctor.ray_cluster(None).failed
