"""How long a call takes and how much memory it needs beyond its inputs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

MOST_REPEATS = 50
# Calls of so many seconds are their own average over disturbances: one is enough.
LONG = 10.0


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Wall-clock time of one call, the device's queue empty before and after."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def interleaved_seconds(
    calls: Mapping[str, Callable[[], object]], device: str, *, repeats: int, seconds: float
) -> dict[str, list[float]]:
    """Times every call in turn, round after round, so that a disturbance falls on all of them alike.

    A call takes part in at least ``repeats`` rounds, and in more until it has had about ``seconds``; one of
    ``LONG`` seconds or more in a single one. Calls should have run once before.
    """
    samples = {name: [seconds_of(call, device)] for name, call in calls.items()}
    wanted = {
        name: 1 if first >= LONG else min(MOST_REPEATS, max(repeats, round(seconds / first)))
        for name, (first,) in samples.items()
    }
    for number in range(1, max(wanted.values(), default=0)):
        for name, call in calls.items():
            if number < wanted[name]:
                samples[name].append(seconds_of(call, device))
    return samples


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """The most memory that torch held at once during a call, beyond what it held before; the result counts.

    On a CPU every allocation of torch's own allocator is followed, through the profiler; memory that a
    library takes behind torch's back is not seen, and neither are the machine's other tenants. On CUDA the
    allocator keeps the count itself.
    """
    if device == "cuda":
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        _synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    # Sorting is stable: events of one instant stay in the order in which they were recorded.
    changes = sorted(
        (event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]
    )
    return max(accumulate((event["args"]["Bytes"] for event in changes), initial=0))


def saved_tensors(call: Callable[[], object]) -> dict[int, Tensor]:
    """A tensor of each storage that autograd keeps for a call's backward, by the storage's identity."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # The tensor is held, so that no storage is released and its place used again.
        saved[storage_identity(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return saved


def storage_identity(tensor: Tensor) -> int:
    """The same for all views of one storage, on `meta` too, as long as one of them lives."""
    return tensor.untyped_storage()._cdata


def saved_bytes(call: Callable[[], object], besides: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for the backward of a call in other storages than those of ``besides``."""
    given = {storage_identity(tensor) for tensor in besides}
    saved = saved_tensors(call).items()
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in saved if storage not in given)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
