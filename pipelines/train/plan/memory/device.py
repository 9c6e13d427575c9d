"""How much memory the workers' devices have, where that is known before the run."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.system.capacity import Capacity
from pipelines.system.machine import GIB, total_memory
from pipelines.system.worker_resources import Reservation

# By the names that Ray gives accelerators (ray/util/accelerators), from NVIDIA's data sheets. Types that are
# sold with several sizes under one name stand with the largest: what does not fit that fits none.
_GPU_GIB = {
    "V100": 32,
    "P100": 16,
    "T4": 16,
    "P4": 8,
    "K80": 12,
    "A10": 24,
    "A10G": 24,
    "L4": 24,
    "L40": 48,
    "L40S": 48,
    "A100": 80,
    "A100-40G": 40,
    "A100-80G": 80,
    "H100": 94,
    "H200": 141,
    "H20": 96,
    "GH200": 144,
    "B200": 180,
    "B300": 270,
    "RTX-PRO-6000": 96,
}


@dataclass(frozen=True)
class Device:
    """Where a worker's tensors lie.

    Attributes:
        gpu: on a GPU; on a CPU, in main memory, if not.
        memory: its bytes; None if unknown.
        name: what to call it.
        hosts: main memory in bytes of each kind of node that workers may get, and how many of them share it.
        local: it is this machine's main memory, which all workers share.
    """

    gpu: bool
    memory: int | None
    name: str
    hosts: tuple[tuple[float, int], ...] = ()
    local: bool = False


def gpu_memory(accelerator: str | None) -> int | None:
    """Returns the bytes of a GPU by the type that Ray gives it; None for types that are not known here."""
    gib = _GPU_GIB.get((accelerator or "").upper())
    return None if gib is None else gib * GIB


def device_of(told: int | None, workers: Reservation, capacity: Capacity) -> Device:
    """Returns what a worker computes on, as far as it is known.

    Args:
        told: bytes of a GPU, as the recipe has them.
        workers: what they reserve.
        capacity: what there is and can be.
    """
    nodes = tuple(each for each in capacity.fitting(workers.resources) if each.resources.get("memory"))
    hosts = tuple((each.resources["memory"], each.holds(workers.resources)) for each in nodes)
    if workers.gpus:
        part = min(1.0, workers.gpus)
        if told is not None:
            return Device(True, int(told * part), "a GPU (gpu.memory)", hosts)
        sizes = {name: gpu_memory(name) for name in workers.accelerators}
        if not sizes or not all(sizes.values()):
            return Device(True, None, "a GPU", hosts)
        smallest = min(sizes, key=lambda name: sizes[name] or 0)
        return Device(True, int((sizes[smallest] or 0) * part), f"a GPU ({smallest})", hosts)
    if capacity.local:
        return Device(False, total_memory(), "this machine", hosts, local=True)
    largest = max((memory for memory, _ in hosts), default=None)
    return Device(False, None if largest is None else int(largest), "a node", hosts)
