"""What a worker's memory is used for, part by part, and how that is printed."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipelines.system.machine import bytes_text


@dataclass(frozen=True)
class MemoryParts:
    """The peak memory of one worker, in bytes.

    Attributes:
        weights: parameters and buffers; under ZeRO-3 its share, and what is gathered of the others'.
        gradients: of what trains, or its share.
        optimizer: float32 copies and moments.
        activations: what the forward pass keeps for the backward pass.
        loss: logits and their gradient, where that is the fullest moment.
        transient: what comes and goes within a layer, or in the optimizer's step.
        buckets: what gradients are collected in to be summed over the workers.
        exchange: keys, values and states received from the workers that share a row.
        process: the process without any of these, where it lies in the same memory.
        moment: when the peak occurs.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    loss: int = 0
    transient: int = 0
    buckets: int = 0
    exchange: int = 0
    process: int = 0
    moment: str = ""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(size for _, size in self._sizes())

    def __str__(self) -> str:
        """Returns the parts that are not empty, in their order."""
        return ", ".join(f"{name} {bytes_text(size)}" for name, size in self._sizes() if size)

    def _sizes(self) -> list[tuple[str, int]]:
        return [(each.name, getattr(self, each.name)) for each in fields(self) if each.name != "moment"]
