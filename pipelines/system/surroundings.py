"""What a user's environment brings along, made harmless here or named in one line.

Leftovers of other launchers (mpirun, srun, torchrun, accelerate), proxies that would be asked for this very
machine, switches of Ray, folders for temporary files that Ray cannot use, low limits.
"""

from __future__ import annotations

import ipaddress
import os
import resource
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

_LAUNCHERS = (
    *("OMPI_", "PMI_", "PMIX_", "PRTE_", "MV2_", "MVAPICH_", "I_MPI_", "HYDRA_", "MPI_LOCAL", "PALS_"),
    *(
        "SLURM_",
        "SLURMD_",
        "FLUX_",
        "JSM_",
        "PET_",
        "TORCHELASTIC_",
        "ACCELERATE_",
        "FSDP_",
        "DS_",
        "SMDATAPARALLEL_",
    ),
)
_RENDEZVOUS = frozenset(
    {
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
        *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "LOCAL_SIZE"),
        *("CROSS_RANK", "CROSS_SIZE", "AZUREML_EXPERIMENT_ID", "SM_TRAINING_ENV", "DLTS_JOB_ID"),
    }
)
_OF_A_PROCESS_GROUP = _RENDEZVOUS | {"ACCELERATE_TORCH_DEVICE"}
"""What Ray Train (2.60, `train/torch/config.py`) sets anew in every worker, among others."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_SOCKET_PATH_BYTES = (104 if sys.platform == "darwin" else 108) - 1
_FILES_WANTED = 65536


def leftovers(environment: MutableMapping[str, str] | None = None) -> list[str]:
    """Returns the variables of other launchers that are set, sorted."""
    names = os.environ if environment is None else environment
    return sorted(name for name in names if name in _RENDEZVOUS or name.startswith(_LAUNCHERS))


def forget_launchers() -> None:
    """Removes what other launchers left in this process's environment; it would be taken for this run's own.

    A process that belongs to a process group, as Ray Train's workers do, keeps the variables that made it.
    """
    grouped = _in_process_group()
    for name in leftovers():
        if not (grouped and name in _OF_A_PROCESS_GROUP):
            del os.environ[name]


def _in_process_group() -> bool:
    distributed = sys.modules.get("torch.distributed")  # not imported just to ask
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def reach_loopback_directly(*urls: str) -> None:
    """Keeps proxies out of connections to this machine itself, `localhost` and loopback hosts in `urls`."""
    if not any(proxy_variable(scheme) for scheme in ("http", "https")):
        return
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host for host in (part.strip() for part in named.split(",")) if host]
    wanted = [*LOOPBACK, *(host for url in urls if is_loopback(host := _host(url)))]
    hosts += [host for host in dict.fromkeys(wanted) if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def is_loopback(host: str) -> bool:
    """Says whether a host's name or number is this very machine's."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # half an address
        return ""


def proxy_variable(scheme: str) -> str | None:
    """Returns the variable that names a proxy for a scheme (`http`, `https`), or None."""
    names = (f"{scheme}_proxy", "all_proxy")
    return next((each for name in names for each in (name, name.upper()) if os.environ.get(each)), None)


def proxy_for(url: str) -> str | None:
    """Returns the variable whose proxy a request to `url` goes through, or None if it goes directly."""
    from requests.utils import should_bypass_proxies

    return (
        None if not _host(url) or should_bypass_proxies(url, None) else proxy_variable(urlsplit(url).scheme)
    )


def ray_switches() -> list[str]:
    """Returns the variables that change how Ray works and are set, sorted."""
    return sorted(name for name in os.environ if name.startswith("RAY_"))


def network_switches() -> list[str]:
    """Returns the variables that say how workers reach each other and are set, sorted."""
    return sorted(name for name in os.environ if name.startswith(("GLOO_", "NCCL_", "TORCH_NCCL_")))


def temporary_folder() -> tuple[str, str]:
    """Returns where a Ray started here keeps its files, and the variable that says so (or `/tmp`)."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if name in os.environ:
            return os.environ[name], name
    return "/tmp", "/tmp"


def temporary_folder_problem() -> str | None:
    """Returns why Ray cannot keep its files where the environment says, and what to do, or None."""
    folder, variable = temporary_folder()
    if not os.path.isabs(folder):
        return f"{variable} is {folder!r}; set it to the absolute path of a folder"
    path = Path(folder)
    if not path.is_dir():
        return f"{variable} is {folder}, which is not a folder; create it, or set another {variable}"
    if not os.access(path, os.W_OK | os.X_OK):
        return f"{variable} is {folder}, which cannot be written to; set another {variable}"
    # As Ray (2.60, `_private/node.py`) names the longest of its sockets.
    session = f"session_{datetime(2000, 1, 1):%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    below = len(os.fsencode(os.path.join("", "ray", session, "sockets", "plasma_store"))) + 1
    room = _SOCKET_PATH_BYTES - below
    if len(os.fsencode(folder.rstrip("/"))) > room:
        return (
            f"{variable} is {folder} ({len(os.fsencode(folder))} bytes), and the names of Ray's sockets "
            f"below it leave {room}; set a shorter one, {variable}=/tmp for instance"
        )
    return None


def raise_file_limit() -> None:
    """Raises this process's limit on open files as far as it may be: Ray needs thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has a lower limit that it does not report
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_file_limit() -> int | None:
    """Returns how many files this process may open at most; None where there is no limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard
