"""A Ray cluster that grows from a head without CPUs: its nodes are processes on this machine.

Ray's own `AutoscalingCluster` would end every Ray process on the machine when it starts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.pipelines.train.conftest import free_port

HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # as the fake provider numbers nodes
READY_SECONDS = 120.0


@dataclass(frozen=True)
class AutoscalingCluster:
    """Where its control store answers, and what a program needs in its environment to use it."""

    address: str
    environment: Mapping[str, str]


@contextmanager
def autoscaling_cluster(
    node_types: Mapping[str, Mapping[str, Any]], *, v2: bool = True
) -> Iterator[AutoscalingCluster]:
    """Starts a head without CPUs and GPUs, whose autoscaler can start nodes of `node_types`; ends it all."""
    scratch = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets lie below it: their paths must stay short
    port = free_port()
    address = f"127.0.0.1:{port}"
    configuration = scratch / "autoscaling.yaml"
    configuration.write_text(json.dumps(_configuration(node_types, address)))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": address,
    }
    fake = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1" if v2 else "0",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    }
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=0", "--num-gpus=0"),
        *(
            "--include-dashboard=false",
            f"--ray-client-server-port={free_port()}",
            "--dashboard-agent-listen-port=0",
        ),
        *("--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000"),
        *(f"--temp-dir={scratch}", f"--autoscaling-config={configuration}", "--disable-usage-stats"),
    ]
    without_address = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    log = scratch / "head.log"
    with log.open("wb") as opened:
        head = subprocess.Popen(
            command,
            env=without_address | fake,
            stdout=opened,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(head, port, log)
        yield AutoscalingCluster(address, environment)
    finally:
        _end(head)
        shutil.rmtree(scratch, ignore_errors=True)


def _configuration(node_types: Mapping[str, Mapping[str, Any]], address: str) -> dict[str, Any]:
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "fake",
        "max_workers": 8,
        "upscaling_speed": 20.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "gcs_address": address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "worker_liveness_check": False,
        },
        "auth": {},
        "docker": {},
        "available_node_types": {
            "ray.head.default": head,
            **{name: {"node_config": {}, **type_} for name, type_ in node_types.items()},
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        **{
            name: []
            for name in (
                *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
                *("setup_commands", "head_setup_commands", "worker_setup_commands"),
                *("head_start_ray_commands", "worker_start_ray_commands"),
            )
        },
        "file_mounts_sync_continuously": False,
    }


def _wait_until_ready(head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        if "Ray runtime started" in log.read_text(errors="replace"):
            return
        time.sleep(0.2)
    raise RuntimeError(
        f"the Ray head at port {port} did not become ready:\n{log.read_text(errors='replace')[-4000:]}"
    )


def _end(head: subprocess.Popen[bytes]) -> None:
    """Ends the head and everything below it: its nodes are processes of its autoscaler."""
    processes = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    if head.poll() is None:
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    psutil.wait_procs(processes, timeout=10)
