"""A real S3 server on this machine: OpenStack Swift with its S3 interface, one replica, four processes.

Unlike an in-memory imitation it checks signatures, stores objects on disk and implements multipart uploads,
so that what passes here has met a server that says no.
"""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs

ACCESS_KEY = "test:tester"
SECRET_KEY = "testing"
_READY_SECONDS = 180.0
_STOP_SECONDS = 10.0

_SWIFT_CONF = """
[swift-hash]
swift_hash_path_suffix = expansion-span
swift_hash_path_prefix = expansion-span
"""

_BACKEND_CONF = """
[DEFAULT]
swift_dir = {root}
devices = {root}/devices
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
log_level = WARNING
disable_fallocate = true

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

_RINGS = """
import json, sys
from swift.common.ring.builder import RingBuilder

root, ports = sys.argv[1], json.loads(sys.argv[2])
for kind, port in ports.items():
    builder = RingBuilder(part_power=2, replicas=1, min_part_hours=1)
    address = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    builder.add_dev({"region": 1, "zone": 1, "device": "disk", "weight": 1.0, "meta": "", **address})
    builder.rebalance()
    builder.get_ring().save(f"{root}/{kind}.ring.gz")
"""

_PROXY_CONF = """
[DEFAULT]
swift_dir = {root}
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
log_level = WARNING

[pipeline:main]
pipeline = catch_errors proxy-logging listing_formats s3api tempauth bulk slo dlo proxy-logging proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:proxy-logging]
use = egg:swift#proxy_logging

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:s3api]
use = egg:swift#s3api
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin

[filter:bulk]
use = egg:swift#bulk

[filter:slo]
use = egg:swift#slo
minimum_segment_size = 1

[filter:dlo]
use = egg:swift#dlo
"""


def free_ports(count: int) -> list[int]:
    """`count` distinct TCP ports that nothing on 127.0.0.1 listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass(frozen=True)
class S3Server:
    """Where a running server listens and what it accepts."""

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    def environment(self) -> dict[str, str]:
        """The variables by which boto-based clients, s3fs among them, find this server and no other."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all the tests of this folder."""
    processes = SwiftProcesses(tmp_path_factory.mktemp("swift"))
    try:
        yield processes.start()
    finally:
        processes.stop()


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, `s3://...`, that clients in this process and its children find by themselves."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def wrong_secret(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients made from here on sign with a secret that the server does not know."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"not {s3_server.secret_key}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients made from here on have nothing to sign with, and find no file that does."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


class SwiftProcesses:
    """Swift's account, container, object and proxy servers below `root`, where files must have xattrs."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> S3Server:
        """Starts the four processes and returns once the proxy answers.

        Raises:
            RuntimeError: a process ended or none answered in time; carries the processes' last output.
        """
        account, container, object_, proxy = free_ports(4)
        (self._root / "devices" / "disk").mkdir(parents=True)
        (self._root / "swift.conf").write_text(_SWIFT_CONF)
        ports = {"account": account, "container": container, "object": object_}
        self._write_rings(**ports)
        for kind, port in ports.items():
            self._launch(kind, _BACKEND_CONF, port)
        self._launch("proxy", _PROXY_CONF, proxy)
        server = S3Server(f"http://127.0.0.1:{proxy}")
        self._wait_until_ready(server)
        return server

    def stop(self) -> None:
        """Ends the four processes; kills those that do not end by themselves."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _write_rings(self, **ports: int) -> None:
        """Makes the rings in another process: importing Swift replaces a process's sockets (eventlet)."""
        subprocess.run([sys.executable, "-c", _RINGS, str(self._root), json.dumps(ports)], check=True)

    def _launch(self, kind: str, template: str, port: int) -> None:
        configuration = self._root / f"{kind}-server.conf"
        configuration.write_text(
            template.format(kind=kind, port=port, root=self._root, user=getpass.getuser())
        )
        with (self._root / f"{kind}.log").open("wb") as log:
            self._processes[kind] = subprocess.Popen(
                [str(Path(sys.executable).parent / f"swift-{kind}-server"), str(configuration), "--verbose"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait_until_ready(self, server: S3Server) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            ended = [kind for kind, process in self._processes.items() if process.poll() is not None]
            if ended:
                raise RuntimeError(f"Swift's {', '.join(ended)} server ended:\n{self._last_output()}")
            if _can_list_buckets(server):
                return
            time.sleep(0.2)
        raise RuntimeError(f"Swift did not answer within {_READY_SECONDS:.0f} s:\n{self._last_output()}")

    def _last_output(self) -> str:
        return "\n".join(
            f"--- {kind}\n{(self._root / f'{kind}.log').read_text(errors='replace')[-2000:]}"
            for kind in self._processes
        )


def _can_list_buckets(server: S3Server) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import Session

    client = Session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )
    try:
        client.list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True
