"""Which tokens of a row a rank holds, and where documents begin among them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from se_model.parallel.group import ContextParallelGroup
from se_model.span.documents import DocumentBounds, Documents, document_bounds


@dataclass(frozen=True)
class SequenceShard:
    """The tokens of one rank: its P-th, contiguous part of a row of ``length`` tokens.

    Made once per batch, from integers on the host: what layers ask of it waits for no device.

    bounds: of the whole row's documents, (0, ..., length). Documents begin and end anywhere.
    """

    group: ContextParallelGroup
    length: int
    bounds: tuple[int, ...]
    _positions: dict[torch.device, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(
        cls,
        group: ContextParallelGroup,
        length: int,
        cu_seqlens: Documents | None = None,
        *,
        chunk_multiple: int = 1,
    ) -> SequenceShard:
        """This rank's shard of a row. cu_seqlens: [N + 1], of the whole row; None for a single document.

        chunk_multiple: what the tokens per rank must be a multiple of, the largest chunk size.

        Raises:
            ValueError: if the row cannot be cut so, or ``cu_seqlens`` does not fit it.
        """
        shard_length(length, group.size, chunk_multiple)
        return cls(group, length, document_bounds(cu_seqlens, length))

    @property
    def tokens_per_rank(self) -> int:
        """The number of own tokens, n, the same on all ranks."""
        return self.length // self.group.size

    @property
    def start(self) -> int:
        """The row's index of the first own token."""
        return self.group.rank * self.tokens_per_rank

    @property
    def end(self) -> int:
        """The row's index behind the last own token."""
        return self.start + self.tokens_per_rank

    @property
    def tokens(self) -> slice:
        """The own tokens, in the row."""
        return slice(self.start, self.end)

    @cached_property
    def local_bounds(self) -> tuple[int, ...]:
        """Bounds of the pieces of documents in this shard, counted from its first token: (0, ..., n)."""
        return tuple(bound - self.start for bound in cut_bounds(self.bounds, self.start, self.end))

    @property
    def tokens_before(self) -> int:
        """How many tokens of the first own token's document lie on earlier ranks."""
        return self.start - self.bounds[bisect_right(self.bounds, self.start) - 1]

    @property
    def continues_left(self) -> bool:
        """Whether the first own token belongs to a document that began on another rank."""
        return self.tokens_before > 0

    @property
    def first_rank(self) -> int:
        """The rank that holds the beginning of the first own token's document."""
        return (self.start - self.tokens_before) // self.tokens_per_rank

    @cached_property
    def documents(self) -> DocumentBounds | None:
        """The pieces of documents in this shard, between ``local_bounds``; None for a single one."""
        return DocumentBounds(self.local_bounds) if len(self.local_bounds) > 2 else None

    def position_ids(self, device: torch.device | str) -> Tensor:
        """The position of each own token in its document, wherever that began: int64 [1, n]."""
        device = torch.device(device)
        if device not in self._positions:
            # What is first needed in inference mode may be needed in training next.
            with torch.inference_mode(False):
                own = [
                    torch.arange(before, before + end - start)
                    for start, end, before in pieces(self.bounds, self.start, self.end)
                ]
                self._positions[device] = torch.cat(own)[None].to(device)
        return self._positions[device]


def shard_length(length: int, ranks: int, chunk_multiple: int = 1) -> int:
    """Tokens per rank of a row of ``length`` tokens.

    Raises:
        ValueError: if they would be unequally many, no multiple of ``chunk_multiple``, or less than that.
    """
    if length % ranks:
        raise ValueError(
            f"a row of {length} tokens cannot be cut into {ranks} equal shards (context_parallel)"
        )
    own = length // ranks
    if own < chunk_multiple:
        raise ValueError(
            f"more ranks than chunks: a row of {length} tokens has {length // chunk_multiple} chunks of "
            f"{chunk_multiple}, context_parallel is {ranks}"
        )
    if own % chunk_multiple:
        raise ValueError(
            f"{length} tokens over {ranks} ranks are {own} each, no multiple of the largest chunk "
            f"({chunk_multiple})"
        )
    return own


def cut_bounds(bounds: tuple[int, ...], start: int, end: int) -> tuple[int, ...]:
    """Bounds of the pieces of documents between tokens ``start`` and ``end``: (start, ..., end)."""
    return (start, *bounds[bisect_right(bounds, start) : bisect_left(bounds, end)], end)


def pieces(bounds: tuple[int, ...], start: int, end: int) -> list[tuple[int, int, int]]:
    """The documents' pieces between tokens ``start`` and ``end``: (first token, end, tokens before it).

    The last counts the tokens of the same document that lie before ``start``; 0 for all pieces but the first.
    """
    return [
        (max(first, start), min(last, end), max(0, start - first))
        for first, last in pairwise(bounds)
        if first < end and last > start
    ]
