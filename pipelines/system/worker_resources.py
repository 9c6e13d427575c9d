"""What each worker reserves of a cluster: what the recipe says, else what the cluster can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.errors import EspanError
from pipelines.system.capacity import Capacity


@dataclass(frozen=True)
class Reservation:
    """What workers reserve, and why.

    Attributes:
        workers: their number; None where it is decided later.
        cpus: logical CPUs of each.
        gpus: GPUs of each; 0 for workers that compute on CPUs.
        reason: how that was decided, for people to read.
        accelerators: the types of GPU that a worker may get, as Ray names them; None among them stands for
            one of unknown type. Empty without GPUs.
    """

    workers: int | None
    cpus: float
    gpus: float
    reason: str
    accelerators: frozenset[str | None] = frozenset()

    @property
    def resources(self) -> dict[str, float]:
        """What one worker reserves, as Ray takes it."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    def __str__(self) -> str:
        shape = ", ".join(
            f"{amount:.3g} {name}" for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount
        )
        each = f"({shape})" if self.workers is None else f"{self.workers} x ({shape})"
        return f"{each}; {self.reason}"


def reserve(workers: int | None, cpus: float | None, gpus: float | None, capacity: Capacity) -> Reservation:
    """Returns what workers reserve.

    Without `gpus` it is one GPU for each worker where the cluster has, or can have, a node with one, and none
    otherwise. On this machine alone workers that are more than its GPUs compute on its CPUs; on a cluster,
    which is paid for, they are refused.

    Args:
        workers: how many; None where any number will do.
        cpus: of each, None for one, or its share where this machine has fewer cores than workers.
        gpus: of each, None to decide by `capacity`.
        capacity: what there is and can be.

    Raises:
        EspanError: the cluster can never have that many GPUs, or does not say whether it can have any.
    """
    if cpus is None:
        cpus = _share(workers, capacity) if capacity.local else 1.0
    if gpus is not None:
        reason = "as resources.gpus says" if gpus else "no GPU, as resources.gpus says"
        need = {"CPU": cpus, "GPU": gpus}
        if gpus and capacity.local and capacity.room(need) < (workers or 1):
            reason += f": for a cluster, as this machine has {_gpus_text(capacity)}"
        return Reservation(workers, cpus, gpus, reason, _accelerators(capacity, need))
    need = {"CPU": cpus, "GPU": 1.0}
    fitting = capacity.fitting(need)
    if not fitting:
        return Reservation(workers, cpus, 0.0, _reason_for_none(cpus, capacity))
    there = ", ".join(map(str, fitting)) if not capacity.local else f"this machine has {_gpus_text(capacity)}"
    room = capacity.room(need)
    if workers is not None and workers > room:
        if not capacity.local:
            raise EspanError(
                f"{workers} workers of 1 GPU are more than the {room} that this cluster can have ({there}); "
                f"use {room} workers, or resources: {{gpus: 0}} to compute on CPUs"
            )
        reason = f"no GPU: {workers} workers would need {workers}, {there}"
        return Reservation(workers, cpus, 0.0, reason)
    return Reservation(workers, cpus, 1.0, there, _accelerators(capacity, need))


def check_room(reservation: Reservation, capacity: Capacity) -> None:
    """Refuses workers that need more than this machine has; a cluster may grow.

    Raises:
        EspanError: it names the keys to lower.
    """
    workers = reservation.workers or 1
    if not capacity.local or capacity.room(reservation.resources) >= workers:
        return
    (machine, *_) = capacity.node_types
    asked = f"{reservation.cpus:g} CPUs and {reservation.gpus:g} GPUs"
    has = f"{machine.resources.get('CPU', 0):g} CPUs and {machine.gpus:g} GPUs"
    if workers == 1:
        raise EspanError(
            f"one worker needs {asked}, this machine has {has}; lower resources.cpus or resources.gpus"
        )
    raise EspanError(
        f"{workers} workers of {asked} do not fit on this machine with {has}; lower workers or resources"
    )


def as_many_as_fit(resources: Mapping[str, float], capacity: Capacity) -> int:
    """Returns how many workers to start where any number will do: those for which the nodes that are up have
    room, or where none has, those of one node that can be started.
    """
    starting = max((each.holds(resources) for each in capacity.fitting(resources)), default=0)
    return capacity.room_now(resources) or max(1, starting)


def _share(workers: int | None, capacity: Capacity) -> float:
    cores = sum(each.up * each.resources.get("CPU", 0.0) for each in capacity.node_types)
    return min(1.0, cores / (workers or 1))


def _accelerators(capacity: Capacity, need: Mapping[str, float]) -> frozenset[str | None]:
    if not need["GPU"]:
        return frozenset()
    found = frozenset(each.accelerator for each in capacity.fitting(need))
    return found or frozenset({None})


def _reason_for_none(cpus: float, capacity: Capacity) -> str:
    """Returns why workers that did not ask get no GPU.

    Raises:
        EspanError: it cannot be determined.
    """
    if any(each.most and each.gpus >= 1 for each in capacity.node_types):
        return f"no GPU: nothing with a GPU has {cpus:g} CPUs"
    if capacity.blind_spots:
        raise EspanError(
            f"whether this cluster can have GPUs is unknown: {capacity.blind_spots}; "
            "say resources: {gpus: 1}, or {gpus: 0} to compute on CPUs"
        )
    if capacity.local:
        return "no GPU: this machine has none"
    return "no GPU: no node and no node type of this cluster has one"


def _gpus_text(capacity: Capacity) -> str:
    count = sum(each.up * each.gpus for each in capacity.node_types)
    kinds = sorted({each.accelerator for each in capacity.node_types if each.accelerator})
    return f"{count:g} GPU{'' if count == 1 else 's'}" + (f" ({', '.join(kinds)})" if kinds else "")
