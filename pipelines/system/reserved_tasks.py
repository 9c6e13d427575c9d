"""Work on the cluster that reserves the memory it needs, instead of running where the recipe runs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.errors import EspanError, one_line
from pipelines.system.capacity import Capacity, cluster_capacity
from pipelines.system.machine import bytes_text
from pipelines.system.progress import Progress

if TYPE_CHECKING:
    from ray.exceptions import RayError

Result = TypeVar("Result")

_M_MMAP_THRESHOLD = -3  # malloc.h

PROCESS_BYTES = 700 << 20
"""Python with torch, Ray, transformers and peft, before any model."""


def run_reserved(
    function: Callable[..., Result], *arguments: Any, memory: int, label: str, progress: Progress
) -> Result:
    """Returns `function(*arguments)`, run as a Ray task with one CPU that reserves `memory` bytes.

    Raises:
        EspanError: the function's own; the task's node was lost; or no node has so much memory.
    """
    import ray

    reserved = memory_to_reserve(memory, {"CPU": 1.0}, cluster_capacity(), label, progress)
    if reserved:
        progress.message(f"{label}: runs as a task that reserves {bytes_text(reserved)} of memory")
    # "DEFAULT": inside a trial of Ray Tune, tasks would otherwise have to fit into what the trial reserved.
    task = ray.remote(function).options(
        num_cpus=1, memory=reserved, max_retries=0, scheduling_strategy="DEFAULT"
    )
    reference = task.remote(*arguments)
    try:
        result: Result = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise failure_of(error, f"{label} failed") from error
    except BaseException:
        ray.cancel(reference)
        raise
    return result


def failure_of(error: RayError, what: str) -> EspanError:
    """Returns what a task or actor told in its own words, or `what` with the error that it failed of."""
    import ray

    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if isinstance(cause, EspanError):
        return cause
    return EspanError(f"{what}: {type(cause).__name__}: {one_line(cause)}")


def give_memory_back() -> None:
    """Makes this process return freed memory to the system at once, if the C library is glibc.

    By default glibc raises the size from which memory is mapped, and unmapped when freed, to up to 32 MiB;
    smaller pieces then stay in a fragmented heap. Setting the size keeps it fixed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def memory_to_reserve(
    needed: int, others: Mapping[str, float], there: Capacity, label: str, progress: Progress
) -> int:
    """Returns how many bytes a task that needs `needed` beside `others` reserves: all of them, or none.

    None only if it is unknown how much memory the nodes have that would be started for it: an autoscaler
    starts no node for a resource that its configuration does not mention. A message says so.

    Raises:
        EspanError: no node has so many, and none can.
    """
    if there.fitting({**others, "memory": float(needed)}):
        return needed
    fitting = there.fitting(others)
    if not there.local and any("memory" not in each.resources for each in fitting):
        progress.message(
            f"{label}: needs {bytes_text(needed)} of memory, which it cannot reserve: the configuration of "
            "this cluster does not say how much its nodes have"
        )
        return 0
    most = max((each.resources.get("memory", 0.0) for each in fitting), default=0.0)
    raise EspanError(
        f"{label} needs {bytes_text(needed)} of memory, and {there} has {bytes_text(most)} for it; "
        + ("close other programs, or use a larger machine" if there.local else "give it larger nodes")
    )
