"""What a worker finds when it looks for the GPU that it reserved."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import EspanError
from pipelines.system.precision import NoBfloat16Error


@dataclass(frozen=True)
class Device:
    """What one worker found.

    Attributes:
        node: the machine's name.
        gpu: the GPU's name; None where torch finds none.
        bf16: the GPU computes in bf16 natively, not only by converting to and from it.
        build: the build of torch that looked.
    """

    node: str
    gpu: str | None
    bf16: bool
    build: str


def find_device() -> Device:
    """Looks for this process's GPU."""
    import torch

    there = torch.cuda.is_available()
    return Device(
        node=socket.gethostname(),
        gpu=torch.cuda.get_device_name() if there else None,
        bf16=there and torch.cuda.is_bf16_supported(including_emulation=False),
        build=torch.__version__,
    )


def check_devices(found: Sequence[Device], *, needs_bf16: bool) -> None:
    """Refuses workers that reserved a GPU and have none; a restart would find the same.

    Args:
        found: what each worker found.
        needs_bf16: bf16 was chosen without knowing the GPUs' type.

    Raises:
        NoBfloat16Error: a GPU cannot compute in it.
        EspanError: a worker has no GPU.
    """
    for device in found:
        if device.gpu is None:
            raise EspanError(
                f"a worker on {device.node} reserved a GPU, but torch {device.build} finds no CUDA device "
                "there; check that node's driver and image, or set resources: {gpus: 0} to compute on CPUs"
            )
    lacking = [device for device in found if not device.bf16]
    if needs_bf16 and lacking:
        raise NoBfloat16Error(f"{lacking[0].gpu} on {lacking[0].node} has no bf16")
