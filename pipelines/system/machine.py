"""What this machine has: cores, memory, disk, GPUs. Limits of a container count as the machine's."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

GIB = 1 << 30

_CGROUP = Path("/sys/fs/cgroup")
_DEVICES = Path("/dev")
_NVIDIA = Path("/proc/driver/nvidia/gpus")
_MODEL = re.compile(r"\w+\s+((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")


def cpu_count() -> int:
    """Returns the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Returns the memory this process may use at most, in bytes."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_number("memory.max")
    return installed if limit is None else min(installed, limit)


def available_memory() -> int:
    """Returns the memory that is free or can be freed at once, in bytes."""
    free = _meminfo("MemAvailable") or total_memory()
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is None or used is None:
        return free
    return max(0, min(free, limit - used + _reclaimable_cache()))


def free_disk(folder: str | Path) -> int:
    """Returns the free bytes of the disk that holds `folder`, which need not exist yet."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def gpus() -> tuple[str | None, ...]:
    """Returns the CUDA GPUs that this process may use, each by its type as Ray names it (`H100`), None where
    the driver does not say. Neither torch nor Ray is used: both take seconds to import.
    """
    count = sum(1 for each in _DEVICES.glob("nvidia[0-9]*") if each.name.removeprefix("nvidia").isdigit())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [] if visible in ("", "-1", "NoDevFiles") else visible.split(",")
        count = min(count, len(names))
    kinds = {_gpu_type(file.read_text()) for file in _NVIDIA.glob("*/information")}
    return ((kinds.pop() if len(kinds) == 1 else None),) * count


def _gpu_type(information: str) -> str | None:
    """Returns what Ray (`ray/_private/accelerators/nvidia_gpu.py`) calls a GPU that the driver reports."""
    model = next((line for line in information.splitlines() if line.startswith("Model:")), "")
    name = model.removeprefix("Model:").strip()
    found = _MODEL.match(name)
    kind = found.group(1) if found else re.sub(r"^NVIDIA\s+", "", name)
    return kind.replace(" ", "-") or None


def bytes_text(count: float) -> str:
    """Returns a number of bytes as people write it: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _cgroup_number(name: str) -> int | None:
    """Reads one number of this container's cgroup (version 2); None where there is no such limit."""
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable_cache() -> int:
    """Returns the page cache charged to the container, which the kernel drops before it refuses memory."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
