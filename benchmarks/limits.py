"""What is not worth starting: calls that would not fit the memory, or take too long."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from benchmarks.settings import Setting
from pipelines.system.machine import available_memory, bytes_text

# Of the free memory; the rest is for what an allocator or a library keeps for itself.
USABLE = 0.9


def input_bytes(setting: Setting, length: int, dtype: torch.dtype) -> int:
    """q, k, v and the output's gradient."""
    return 2 * sum(_query_and_key_bytes(setting, length, dtype))


def output_bytes(setting: Setting, length: int, dtype: torch.dtype, mode: str) -> int:
    """The output; with a backward pass also the gradients of q, k and v. Of a choice of blocks nothing."""
    queries, keys = _query_and_key_bytes(setting, length, dtype)
    return {"forward": queries, "forward_backward": 2 * queries + 2 * keys}.get(mode, 0)


def free_bytes(device: str) -> int:
    """What the inputs and calls of a length could take now."""
    if device != "cuda":
        return available_memory()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


@dataclass
class Limits:
    """Knows how long calls took, and so how long a longer one may take.

    Attributes:
        seconds: that one call may take.
        memory: bytes that inputs, outputs and stored scores may take together.
    """

    seconds: float
    memory: int
    _taken: dict[tuple[str, str], tuple[int, float, float]] = field(default_factory=dict)

    def too_large(self, needed: int) -> str | None:
        """Why so many bytes are too many; None if they are not."""
        if needed <= self.memory * USABLE:
            return None
        return f"needs about {bytes_text(needed)} of memory; {bytes_text(self.memory)} are free"

    def too_slow(self, name: str, mode: str, flops: float) -> str | None:
        """Why the call would take too long, judged by its last length; None if it would not, or had none."""
        if (name, mode) not in self._taken:
            return None
        length, seconds, before = self._taken[name, mode]
        expected = seconds * flops / before
        if expected <= self.seconds:
            return None
        return f"about {expected:,.0f} s a call, judged by {length:,} tokens; the limit is {self.seconds:g} s"

    def note(self, name: str, mode: str, flops: float, length: int, seconds: float) -> None:
        """Remembers what a call took."""
        self._taken[name, mode] = (length, seconds, flops)


def _query_and_key_bytes(setting: Setting, length: int, dtype: torch.dtype) -> tuple[int, int]:
    row = length * setting.head_dim * dtype.itemsize
    return row * setting.heads, row * setting.kv_heads
