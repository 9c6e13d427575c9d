"""`espan doctor`: what this machine has and lacks, each finding with what to do about it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pipelines.system.cluster_session import address_problem
from pipelines.system.machine import GIB, available_memory, bytes_text, cpu_count, free_disk, total_memory
from pipelines.system.surroundings import (
    leftovers,
    open_file_limit,
    proxy_variable,
    ray_switches,
    temporary_folder,
    temporary_folder_problem,
)

OLDEST_PYTHON = (3, 11)
MEMORY_WANTED = 6 * GIB
DISK_WANTED = 5 * GIB
FILES_WANTED, LEAST_FILES = 4096, 512
_CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


@dataclass(frozen=True)
class Check:
    """One finding; `failed` means that runs will not work, `advice` says what would change it."""

    name: str
    found: str
    failed: bool = False
    advice: str = ""

    def __str__(self) -> str:
        mark = "FAIL" if self.failed else "note" if self.advice else "ok"
        return f"{mark:4}  {self.name:12}  {self.found}" + (f"; {self.advice}" if self.advice else "")


def examine(folder: Path) -> list[Check]:
    """Returns every finding; `folder` is where runs would write."""
    return [
        python(),
        versions(_CONSTRAINTS),
        Check("cores", str(cpu_count())),
        memory(),
        disk(folder),
        shared_memory(),
        temporary_files(),
        open_files(),
        ports(),
        proxies(),
        launchers(),
        ray_cluster(os.environ.get("RAY_ADDRESS")),
        ray_variables(),
        gpu(),
        tool("compiler", "g++", "only needed for CPU offload and the optional kernels"),
        tool("terraform", "terraform", "only needed to build a cluster from infra/"),
    ]


def python() -> Check:
    """Whether Python is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", found, True, f"{'.'.join(map(str, OLDEST_PYTHON))} or newer is needed")
    return Check("python", found)


def versions(constraints: Path) -> Check:
    """Whether the installed packages are those that were tested together."""
    if not constraints.exists():
        return Check("packages", "no constraints.txt beside this installation")
    pinned = [line.split("#")[0].strip().partition("==") for line in constraints.read_text().splitlines()]
    wanted = {name.strip(): version.split(";")[0].strip() for name, sign, version in pinned if sign}
    installed = {name: _installed(name) for name in wanted}
    missing = [name for name in _required() if installed.get(name, "") is None]
    other = [
        f"{name} {found} (tested: {wanted[name]})"
        for name, found in installed.items()
        if found and found.split("+")[0] != wanted[name].split("+")[0]
    ]
    advice = f"run `pip install -e . -c {constraints.name}`" if missing or other else ""
    found = "; ".join([*(f"{name} is missing" for name in missing), *other])
    return Check("packages", found or f"{len(wanted)} pinned, all as tested", bool(missing), advice)


def _required() -> list[str]:
    lines = metadata.requires("expansion-span") if _installed("expansion-span") else []
    return [re.split(r"[\[<>=!~; ]", line)[0] for line in lines or [] if "extra ==" not in line]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def memory() -> Check:
    """Whether the quickstart fits into memory."""
    free = available_memory()
    advice = "" if free >= MEMORY_WANTED else f"the quickstart needs {bytes_text(MEMORY_WANTED)} free"
    return Check("memory", f"{bytes_text(free)} free of {bytes_text(total_memory())}", free < GIB, advice)


def disk(folder: Path) -> Check:
    """Whether there is room for runs."""
    free = free_disk(folder)
    advice = "" if free >= DISK_WANTED else f"shards and checkpoints need {bytes_text(DISK_WANTED)} or more"
    return Check("disk", f"{bytes_text(free)} free at {folder}", free < GIB, advice)


def shared_memory() -> Check:
    """Whether Ray's object store fits into /dev/shm; else Ray keeps it on disk and is slow."""
    shared = Path("/dev/shm")
    if not shared.exists():
        return Check("shm", "no /dev/shm on this system")
    size = shutil.disk_usage(shared).total
    advice = "" if size >= GIB else "Ray's objects go to disk; start the container with --shm-size=2g"
    return Check("shm", bytes_text(size), False, advice)


def temporary_files() -> Check:
    """Whether Ray can keep its files, and sockets with long names, where it would put them."""
    folder, variable = temporary_folder()
    if problem := temporary_folder_problem():
        return Check("tmp", problem, True)
    free = free_disk(folder)
    advice = (
        "" if free >= GIB else f"Ray's logs and what it moves out of memory need {bytes_text(GIB)} or more"
    )
    named = folder if variable == folder else f"{folder} ({variable})"
    return Check("tmp", f"{bytes_text(free)} free at {named}", False, advice)


def open_files() -> Check:
    """Whether a process may open as many files as Ray does."""
    limit = open_file_limit()
    if limit is None:
        return Check("files", "no limit on open files")
    advice = "" if limit >= FILES_WANTED else f"Ray wants {FILES_WANTED:,}; raise it with `ulimit -n`"
    return Check("files", f"{limit:,} may be open", limit < LEAST_FILES, advice)


def proxies() -> Check:
    """Which variables name proxies."""
    named = sorted({name for scheme in ("http", "https") if (name := proxy_variable(scheme))})
    if not named:
        return Check("proxy", "none")
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "nothing"
    found = f"{' and '.join(named)} set; no_proxy exempts {exempt}"
    return Check("proxy", found, False, "connections to this machine itself bypass it")


def launchers() -> Check:
    """What mpirun, srun, torchrun or accelerate left in the environment."""
    found = leftovers()
    if not found:
        return Check("launchers", "no leftovers")
    return Check("launchers", f"{', '.join(found)} set", False, "runs ignore them")


def ray_variables() -> Check:
    """Which variables change how Ray works."""
    found = ", ".join(name for name in ray_switches() if name != "RAY_ADDRESS")  # their values may be secret
    if os.environ.get("RAY_TRAIN_V2_ENABLED", "1") != "1":
        return Check("ray switches", f"{found} set", False, "runs set RAY_TRAIN_V2_ENABLED to 1")
    return Check("ray switches", f"{found} set" if found else "none")


def ports() -> Check:
    """Whether a program may listen on this machine, as Ray and gloo must."""
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
    except OSError as error:
        return Check(
            "ports", f"no port can be opened: {error}", True, "close programs, or allow local sockets"
        )
    return Check("ports", "free")


def ray_cluster(address: str | None) -> Check:
    """Whether the cluster that RAY_ADDRESS names answers."""
    if not address or address in ("auto", "local"):
        return Check(
            "ray", f"{_installed('ray')}; runs start a local Ray (RAY_ADDRESS is {address or 'not set'})"
        )
    if problem := address_problem(address):
        advice = "start the cluster or unset RAY_ADDRESS"
        return Check("ray", f"{address} does not answer: {problem}", True, advice)
    return Check("ray", f"{_installed('ray')}; {address} answers")


def gpu() -> Check:
    """Which GPUs torch sees."""
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", "none; training runs on the CPU with gloo")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("gpu", ", ".join(names))


def tool(name: str, command: str, purpose: str) -> Check:
    """Which version of an optional program there is."""
    if shutil.which(command) is None:
        return Check(name, f"not found ({purpose})")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return Check(name, done.stdout.splitlines()[0] if done.stdout else f"{command} --version printed nothing")
