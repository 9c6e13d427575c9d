"""Work on the cluster that reserves the memory it needs, instead of running where the recipe runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pipelines.cluster_session import ray_session
from pipelines.errors import EspanError
from pipelines.machine import bytes_text
from pipelines.progress import Progress

Result = TypeVar("Result")

PROCESS_BYTES = 700 << 20
"""Python with torch, Ray, transformers and peft, before any model."""


def run_reserved(
    function: Callable[..., Result], *arguments: Any, memory: int, label: str, progress: Progress
) -> Result:
    """Returns `function(*arguments)`, run as a Ray task with one CPU that reserves `memory` bytes.

    Raises:
        EspanError: the function's own; the task's node was lost; or this machine is too small.
    """
    import ray

    reserved = memory_to_reserve(memory, label, progress)
    progress.message(f"{label}: runs as a task that reserves {bytes_text(memory)} of memory")
    # "DEFAULT": inside a trial of Ray Tune, tasks would else have to fit into what the trial itself reserved.
    task = ray.remote(function).options(
        num_cpus=1, memory=reserved, max_retries=0, scheduling_strategy="DEFAULT"
    )
    reference = task.remote(*arguments)
    try:
        result: Result = ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, EspanError):
            raise cause from error
        what = " ".join(str(cause).split())
        raise EspanError(f"{label} failed: {type(cause).__name__}: {what}") from error
    except BaseException:
        ray.cancel(reference)
        raise
    return result


def memory_to_reserve(needed: int, label: str, progress: Progress) -> int:
    """Returns how many bytes a task that needs `needed` can reserve of the cluster: all of them or none.

    None only where no node that is up has so many beside a CPU. A larger one may be started, but an
    autoscaler starts none for memory that its configuration does not speak of; that is said.

    Raises:
        EspanError: the cluster is this machine, and does not have them.
    """
    import ray

    session = ray_session()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((int(node.get("memory", 0)) for node in nodes if node.get("CPU", 0) >= 1), default=0)
    if needed <= most:
        return needed
    if session.started_here:
        raise EspanError(
            f"{label} needs {bytes_text(needed)} of memory, and this machine has {bytes_text(most)} for it; "
            "close other programs, or run on a larger machine or a cluster"
        )
    progress.message(
        f"{label}: no node that is up has {bytes_text(needed)} of memory for it (the largest has "
        f"{bytes_text(most)}); it waits for a CPU, and reserves no memory"
    )
    return 0
