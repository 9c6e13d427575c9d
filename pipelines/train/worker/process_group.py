"""How Ray Train joins the workers: they look for their GPUs first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from ray.train.torch import TorchConfig, get_device

from pipelines.system.devices import Device, check_devices, find_device

_RayBackend: type = TorchConfig().backend_cls


class _CheckedBackend(_RayBackend):
    """Ray's own, which on a worker without a GPU would fail deep inside NCCL and be retried.

    What is raised here comes from the controller and not from a worker, and so ends the training at once.
    """

    def on_start(self, worker_group: Any, backend_config: CheckedTorchConfig) -> None:
        if backend_config.backend == "nccl":
            found = worker_group.execute(_find_own_device)
            check_devices(found, needs_bf16=backend_config.needs_bf16)
        super().on_start(worker_group, backend_config)


@dataclass
class CheckedTorchConfig(TorchConfig):
    """Ray Train's configuration of torch; see `pipelines.system.devices.check_devices`.

    Attributes:
        needs_bf16: bf16 was chosen without knowing the GPUs' type.
    """

    needs_bf16: bool = False

    @property
    def backend_cls(self) -> type:
        """Joins the workers."""
        return _CheckedBackend


def _find_own_device() -> Device:
    # All GPUs of a node are visible to each of its workers, which would otherwise all look at the first.
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    return find_device()
