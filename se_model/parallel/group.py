"""The ranks that share a row, the exchanges between them, and how many bytes those moved.

Everything travels as bytes, so that every dtype is exchanged alike by every backend (gloo reduces and
scatters only some), and every sum is taken here, in rank order: the same bits at every run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

Direction = Literal["forward", "backward"]

# Its name from torch 2.13 on; before, the second.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
Shape = Sequence[int]


@dataclass
class Traffic:
    """Bytes of payload that left one rank, and that entered it."""

    sent: int = 0
    received: int = 0


class TrafficCounter:
    """What one rank exchanged with the others, by purpose and direction; its own slices do not count.

    What activation checkpointing computes again is counted again, as "forward".
    """

    def __init__(self) -> None:
        self.by_purpose: defaultdict[tuple[str, Direction], Traffic] = defaultdict(Traffic)

    def add(self, purpose: str, direction: Direction, *, sent: int, received: int) -> None:
        """Adds bytes that left and entered this rank."""
        traffic = self.by_purpose[purpose, direction]
        traffic.sent += sent
        traffic.received += received

    def total(self, direction: Direction | None = None) -> Traffic:
        """The sum over all purposes, of one direction or of both."""
        chosen = [t for (_, d), t in self.by_purpose.items() if direction in (None, d)]
        return Traffic(sum(t.sent for t in chosen), sum(t.received for t in chosen))

    def reset(self) -> None:
        """Forgets what was counted."""
        self.by_purpose.clear()


@dataclass(frozen=True)
class PendingExchange:
    """Tensors on their way; ``buffers`` keeps what the backend reads and writes alive until they are here."""

    work: dist.Work | None
    received: list[Tensor]
    buffers: tuple[Tensor, ...]

    def wait(self) -> list[Tensor]:
        """The tensors, one from each rank, once they are here; on a GPU, in the current stream's order."""
        if self.work is not None:
            self.work.wait()
        return self.received


@dataclass(frozen=True, eq=False)
class ContextParallelGroup:
    """The ranks among which a row's tokens are shared out, in the row's order.

    process_group: a torch.distributed group (gloo or NCCL); None for the default one. Every rank makes the
    same calls in the same order. None of them is differentiable: see ``exchange.py``.
    """

    process_group: dist.ProcessGroup | None = None
    counter: TrafficCounter = field(default_factory=TrafficCounter)

    @property
    def rank(self) -> int:
        """This process's place in the group."""
        return dist.get_rank(self.process_group)

    @property
    def size(self) -> int:
        """The number of ranks, P."""
        return dist.get_world_size(self.process_group)

    def all_gather(self, x: Tensor, *, purpose: str, direction: Direction = "forward") -> Tensor:
        """Everybody's ``x``, equally shaped on all ranks: [P, *x.shape]."""
        gathered = x.new_empty((self.size, *x.shape))
        _all_gather(_bytes(gathered), _bytes(x), group=self.process_group)
        others = (self.size - 1) * x.nbytes
        self.counter.add(purpose, direction, sent=others, received=others)
        return gathered

    @overload
    def all_to_all(
        self,
        parts: Sequence[Tensor],
        shapes_in: Sequence[Shape],
        *,
        purpose: str,
        direction: Direction = ...,
        async_op: Literal[False] = ...,
    ) -> list[Tensor]: ...

    @overload
    def all_to_all(
        self,
        parts: Sequence[Tensor],
        shapes_in: Sequence[Shape],
        *,
        purpose: str,
        direction: Direction = ...,
        async_op: Literal[True],
    ) -> PendingExchange: ...

    def all_to_all(
        self,
        parts: Sequence[Tensor],
        shapes_in: Sequence[Shape],
        *,
        purpose: str,
        direction: Direction = "forward",
        async_op: bool = False,
    ) -> list[Tensor] | PendingExchange:
        """Sends ``parts[r]`` to rank r; returns what each rank r sent, of ``shapes_in[r]``, in rank order.

        All parts of all ranks share one dtype; a part may be empty. async_op: return at once, so that what is
        computed before the returned object's ``wait()`` overlaps the exchange.

        Raises:
            ValueError: unless there is a part and a shape for every rank.
        """
        if not len(parts) == len(shapes_in) == self.size:
            raise ValueError(
                f"one part and one shape per rank are needed, {self.size} each; "
                f"got {len(parts)} and {len(shapes_in)}"
            )
        outgoing = torch.cat([part.reshape(-1) for part in parts])
        counts = [math.prod(shape) for shape in shapes_in]
        incoming = outgoing.new_empty(sum(counts))
        width = outgoing.element_size()
        sent, received = [part.nbytes for part in parts], [count * width for count in counts]
        work = dist.all_to_all_single(
            _bytes(incoming), _bytes(outgoing), received, sent, group=self.process_group, async_op=async_op
        )
        own = self.rank
        self.counter.add(
            purpose, direction, sent=sum(sent) - sent[own], received=sum(received) - received[own]
        )
        tensors = [
            part.view(tuple(shape)) for part, shape in zip(incoming.split(counts), shapes_in, strict=True)
        ]
        return PendingExchange(work, tensors, (outgoing, incoming)) if async_op else tensors

    def reduce_scatter(self, x: Tensor, *, purpose: str, direction: Direction = "forward") -> Tensor:
        """The sum over ranks of their slices for this one. x: [P, ...] -> [...], in x's dtype.

        Summed in rank order, in float32 or wider.
        """
        slices = self.all_to_all(x.unbind(0), [x.shape[1:]] * self.size, purpose=purpose, direction=direction)
        wide = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else x.dtype
        total = slices[0].to(wide)
        for part in slices[1:]:
            total = total + part
        return total.to(x.dtype)

    def shift_right(
        self, x: Tensor, shape_in: Shape, *, purpose: str, direction: Direction = "forward"
    ) -> Tensor | None:
        """Sends ``x`` to the next rank, returns what the one before sends, of ``shape_in``.

        The last rank's ``x`` goes nowhere; the first rank gets None.
        """
        return self._shift(x, shape_in, 1, purpose, direction)

    def shift_left(
        self, x: Tensor, shape_in: Shape, *, purpose: str, direction: Direction = "forward"
    ) -> Tensor | None:
        """Sends ``x`` to the rank before, returns what the next one sends, of ``shape_in``.

        The first rank's ``x`` goes nowhere; the last rank gets None.
        """
        return self._shift(x, shape_in, -1, purpose, direction)

    def _shift(
        self, x: Tensor, shape_in: Shape, by: int, purpose: str, direction: Direction
    ) -> Tensor | None:
        ranks, to, source = range(self.size), self.rank + by, self.rank - by
        parts = [x if rank == to else x.new_empty(0) for rank in ranks]
        shapes = [shape_in if rank == source else (0,) for rank in ranks]
        received = self.all_to_all(parts, shapes, purpose=purpose, direction=direction)
        return received[source] if source in ranks else None


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)
