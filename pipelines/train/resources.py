"""What the workers of a training reserve, and the training's keys once that is settled."""

from __future__ import annotations

from dataclasses import replace

from pipelines.recipe.keys.train import Resources, TrainKeys
from pipelines.system.capacity import Capacity
from pipelines.system.precision import Settled
from pipelines.system.worker_resources import Reservation, reserve


def reservation(keys: TrainKeys, capacity: Capacity) -> Reservation:
    """Returns what the workers reserve where there is `capacity`.

    Raises:
        EspanError: there can never be that many GPUs, or it is unknown whether there are any.
    """
    gpus, told = keys.resources.gpus, keys.gpu.memory is not None
    if gpus is None and told:
        found = reserve(keys.workers, keys.resources.cpus, 1.0, capacity)
        return replace(found, reason="as gpu.memory says")
    return reserve(keys.workers, keys.resources.cpus, gpus, capacity)


def reserving(keys: TrainKeys, workers: Reservation) -> TrainKeys:
    """Returns the same keys with what the workers reserve settled."""
    return keys.model_copy(update={"resources": Resources(cpus=workers.cpus, gpus=workers.gpus)})


def in_precision(keys: TrainKeys, precision: Settled) -> TrainKeys:
    """Returns the same keys with the precision settled."""
    return keys.model_copy(update={"precision": precision})
