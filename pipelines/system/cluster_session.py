"""The Ray cluster that a run uses: the one it is part of, the one it is pointed to, or its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import EspanError
from pipelines.system.machine import GIB, available_memory, bytes_text, cpu_count
from pipelines.system.surroundings import (
    forget_launchers,
    raise_file_limit,
    ray_switches,
    reach_loopback_directly,
    temporary_folder_problem,
)

LEAST_MEMORY = 1 * GIB
"""A local Ray head with one idle worker takes about this much; with less it dies later and less clearly."""

_SET_HERE = frozenset(
    {
        *("RAY_AUTH_MODE", "RAY_TRAIN_V2_ENABLED", "RAY_USAGE_STATS_ENABLED", "RAY_AIR_NEW_OUTPUT"),
        *("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_worker_maximum_startup_concurrency"),
        *("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"),
        "RAY_CLIENT_MODE",  # by Ray itself
    }
)

_OF_ANOTHER_CLUSTER = ("RAY_REDIS_ADDRESS", "RAY_external_storage_namespace")
"""Where a cluster that outlives its head keeps its state; a Ray (2.60) that finds none there aborts."""

OWN = "local"
"""The address that stands for a cluster of this process's own."""

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job supervisor in the entrypoint's environment


@dataclass(frozen=True)
class RaySession:
    """The cluster this process is connected to.

    Attributes:
        address: the cluster's address, or `local`.
        started_here: this process started the cluster and ends it.
    """

    address: str
    started_here: bool


_session: RaySession | None = None


def in_ray_job() -> bool:
    """Says whether this process is the entrypoint of a submitted Ray job."""
    return _JOB_VARIABLE in os.environ


def cluster_address() -> str:
    """Returns the address of the cluster that `ray_session` would connect to; `OWN` for a new one."""
    return os.environ.get("RAY_ADDRESS") or ("auto" if in_ray_job() else OWN)


def address_problem(address: str) -> str | None:
    """Returns why no cluster can be reached at a Ray address (`host:port`, `ray://host:port`), or None.

    Ray itself would try for minutes before it says so.
    """
    if address in ("auto", "local"):
        return None
    parts = urlsplit(address if "://" in address else f"gcs://{address}")
    if parts.scheme in ("http", "https"):
        return "that is a dashboard's address, which `espan submit --address` takes"
    try:
        socket.create_connection((parts.hostname or "", parts.port or 6379), timeout=5).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def ray_session() -> RaySession:
    """Connects to Ray on the first call; later calls return the same session.

    The cluster is that of the Ray job this process runs in, else that of `RAY_ADDRESS`, else a new one here.
    A caller that is connected already (a test, a notebook) keeps its connection.

    Raises:
        EspanError: Ray does not start or does not answer; the message says why and what to do.
    """
    global _session
    if _session is not None:
        return _session
    address = cluster_address()
    _set_environment()
    try:
        import ray
    except ValueError as error:  # not a number
        raise EspanError(f"Ray does not start: {_first_line(error)}{_named_switches()}") from error

    was_connected = ray.is_initialized()
    if not was_connected:
        with _signal_handlers_kept():
            _connect(address)
        logging.getLogger("ray").setLevel(logging.ERROR)  # while it starts, the exception says it in one line
    _session = RaySession(
        address=ray.get_runtime_context().gcs_address if was_connected or address != OWN else OWN,
        started_here=not was_connected and address == OWN,
    )
    return _session


def close_ray_session() -> None:
    """Forgets the session, and ends the cluster if `ray_session` started it."""
    global _session
    if _session is None:
        return
    session, _session = _session, None
    if session.started_here:
        import ray

        ray.shutdown()


def _set_environment() -> None:
    """Sets what Ray reads from the environment, before Ray is imported; what the user set stays.

    The authentication mode is always set: unset, a local Ray may leave a token behind in the home folder, and
    clusters started later would ask for it. The user cannot choose the version of Ray Train: training
    needs version 2.
    """
    forget_launchers()
    reach_loopback_directly()
    raise_file_limit()
    has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token else "disabled")
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A training brings half a dozen actors that use no CPU; with as many processes as a small machine has
    # cores, Ray warns of them.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _named_switches() -> str:
    """Returns the end of a message, naming Ray's environment variables that somebody else has set."""
    named = _switches()
    return f"; unset what is not meant for this machine: {named}" if named else ""


def _switches() -> str:
    return ", ".join(name for name in ray_switches() if name not in _SET_HERE)


def _connect(address: str) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL", "configure_logging": True}
    if address != OWN:
        problem = address_problem(address)
        try:
            if problem is None:
                ray.init(address=address, **quiet)
        except Exception as error:
            problem = _first_line(error)
        if problem is not None:
            what = f"no Ray cluster answers at {address}: {problem}"
            raise EspanError(f"{what}; start one, or unset RAY_ADDRESS to run here")
        return
    free = available_memory()
    if free < LEAST_MEMORY:
        raise EspanError(
            f"too little memory to start Ray: {bytes_text(free)} free, {bytes_text(LEAST_MEMORY)} needed; "
            "close other programs or use a larger machine"
        )
    for name in _OF_ANOTHER_CLUSTER:
        os.environ.pop(name, None)
    if problem := temporary_folder_problem():
        raise EspanError(f"Ray cannot start: {problem}")
    if named := _switches():
        # Before Ray reads them: it silently ends the process over some values that it cannot read.
        print(f"Ray starts with settings from the environment: {named}", file=sys.stderr, flush=True)
    try:
        _start(quiet)
    except Exception as error:
        what = f"Ray did not start on this machine: {_first_line(error)}{_named_switches()}"
        raise EspanError(f"{what}; `espan doctor` checks ports, memory and disk") from error


def _start(options: dict[str, Any]) -> None:
    import ray

    for attempts_left in (1, 0):
        try:
            # By its address: without one Ray joins any head announced in its folder for temporary files.
            ray.init(address=OWN, num_cpus=cpu_count(), include_dashboard=False, **options)
        except Exception as error:
            ray.shutdown()
            # Ray gives itself 30 s; a busy machine may need longer, and less when the files are cached.
            if not attempts_left or "timed out during startup" not in str(error):
                raise
        else:
            return


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restores the signal handlers that `ray.init` replaces: the run decides how it stops."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
