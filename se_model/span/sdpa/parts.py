"""Span-expanded attention as a sequence of parts, each computed by one kernel call without a mask.

A part is a set of queries with keys that each of them sees in full, or a causal triangle. The triangles come
first and contain every query once. Parts are small compared with the row, and so is what the calls return.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from se_model.span.layout import Layout, Run
from se_model.span.sdpa.retrieval import add_retrieved_gradient, retrieve
from se_model.span.sdpa.stretches import Stretches
from se_model.span.sdpa.triangle import Tiles, cut_triangle

# How many queries or retrieved keys a part has, unless a single tile is larger: this many, or this fraction
# (one in _SHARE) of a long row's tokens. Many small calls cost time, a few large ones memory.
_TOKENS = 1024
_SHARE = 8


class AttentionPart(Protocol):
    """What one kernel call computes: queries, and keys that ``gather`` brings together for them."""

    @property
    def queries(self) -> Stretches:
        """Where the queries lie."""
        ...

    @property
    def causal(self) -> bool:
        """Whether a query sees only the keys up to itself."""
        ...

    def gather(self, x: Tensor, blocks: Tensor) -> Tensor:
        """The part's keys or values [N, G, keys, D], from where x holds them."""
        ...

    def add_gradient(self, total: Tensor, gradient: Tensor, blocks: Tensor) -> None:
        """Adds ``gradient``, that of what ``gather`` returned, to ``total``, that of x."""
        ...


@dataclass(frozen=True)
class ChunkPart:
    """Tiles of the triangles of equally long chunks, whose keys are read in place.

    Attributes:
        queries: where they lie.
        keys: where the keys lie; the same place if ``causal``.
        causal: whether a tile's queries see its keys causally; otherwise they see all of them.
    """

    queries: Stretches
    keys: Stretches
    causal: bool

    def gather(self, x: Tensor, blocks: Tensor) -> Tensor:
        """The keys or values in x [B, G, L, D] as a batch [N, G, keys, D]."""
        return self.keys.batch(x)

    def add_gradient(self, total: Tensor, gradient: Tensor, blocks: Tensor) -> None:
        """Adds ``gradient``, that of what ``gather`` returned, to total [B, G, L, D].

        A causal part's gradient is the first for its tokens, and overwrites what ``total`` held there.
        """
        here, gradient = self.keys.view(total), self.keys.unbatch(gradient)
        if self.causal:
            here.copy_(gradient)
        else:
            here.add_(gradient)


@dataclass(frozen=True)
class RetrievedPart:
    """Queries and the memory blocks that their choices name, whose keys are gathered."""

    queries: Stretches
    run: Run
    block_size: int
    causal: bool = False

    def gather(self, x: Tensor, blocks: Tensor) -> Tensor:
        """The retrieved keys or values of x [B, G, L, D]: [N, G, retrieved * S, D]."""
        rows = self.queries.rows
        return retrieve(x[rows], blocks[rows], self.run, self.block_size)

    def add_gradient(self, total: Tensor, gradient: Tensor, blocks: Tensor) -> None:
        """Adds ``gradient``, that of what ``gather`` returned, to total [B, G, L, D]."""
        rows = self.queries.rows
        add_retrieved_gradient(total[rows], gradient, blocks[rows], self.run, self.block_size)


def cut_into_parts(q: Tensor, layout: Layout, counts: tuple[int, ...]) -> Iterator[ChunkPart | RetrievedPart]:
    """All that the queries q [B, H, L, D] see, each (query, key) pair in exactly one part.

    ``counts``: how many blocks each choice retrieves.
    """
    tokens = max(_TOKENS, q.shape[2] // _SHARE)
    # The kernel's backward works through one head of one batch element per thread.
    pieces = -(-2 * torch.get_num_threads() // q.shape[1])
    for rows, run in _split(layout.chunk_runs(), q.shape[0], layout.block_size, tokens, pieces):
        for tiles in cut_triangle(run.length, tokens):
            yield _chunk_part(rows, run, tiles)
    retrieving = (run for run in layout.choice_runs(counts) if run.retrieved)
    for rows, run in _split(retrieving, q.shape[0], layout.block_size, tokens, pieces):
        queries = Stretches(rows, run.start, run.pieces, run.length, 1, run.length, run.length)
        yield RetrievedPart(queries, run, layout.block_size)


def _chunk_part(rows: slice, run: Run, tiles: Tiles) -> ChunkPart:
    start = run.start + tiles.start
    keys = Stretches(rows, start, run.pieces, run.length, tiles.count, tiles.step, tiles.keys)
    if tiles.causal:
        return ChunkPart(keys, keys, causal=True)
    return ChunkPart(replace(keys, start=start + tiles.keys, length=tiles.queries), keys, causal=False)


def _split(
    runs: Iterable[Run], batch: int, block_size: int, tokens: int, least: int
) -> Iterator[tuple[slice, Run]]:
    """Cuts each run into shorter ones, each with the batch elements that it is computed for together.

    A shorter run has about ``tokens`` queries or retrieved keys, and at least ``least`` pieces if the run
    has so many.
    """
    for run in runs:
        wanted = max(least, tokens // max(run.length, run.retrieved * block_size))
        pieces, rows = min(wanted, run.pieces), max(1, wanted // run.pieces)
        for row in range(0, batch, rows):
            for piece in range(0, run.pieces, pieces):
                shorter = replace(
                    run,
                    start=run.start + piece * run.length,
                    pieces=min(pieces, run.pieces - piece),
                    first_choice=run.first_choice + piece,
                )
                yield slice(row, min(row + rows, batch)), shorter
