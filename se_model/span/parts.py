"""Span-expanded attention as a sequence of parts, each one call of a kernel without a mask.

A part is a set of queries with keys that they see wholly, or a causal triangle. The triangles come first and
hold every query once. Parts are small beside the row, so that what the calls return is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from se_model.span.layout import Layout, Run
from se_model.span.pieces import give_back, retrieve
from se_model.span.stretches import Stretches
from se_model.span.triangle import Tiles, cut_triangle

# How many queries or retrieved keys a part has where no tile is larger: so many, or one in so many of a
# long row's tokens. Many small calls cost time, a few large ones memory.
_TOKENS = 1024
_SHARE = 8


@dataclass(frozen=True)
class OwnPart:
    """Tiles of the triangles of equally long chunks: keys seen in place.

    Attributes:
        queries: where they lie.
        keys: where the keys lie; with ``causal`` the same place.
        causal: whether a tile's queries see its keys causally; wholly if not.
    """

    queries: Stretches
    keys: Stretches
    causal: bool

    def gather(self, x: Tensor, blocks: Tensor) -> Tensor:
        """The keys or values in x [B, G, L, D] as a batch [N, G, keys, D]."""
        return self.keys.batch(x)

    def give_back(self, total: Tensor, part: Tensor, blocks: Tensor) -> None:
        """Adds ``part``, the gradient of what ``gather`` returned, into total [B, G, L, D].

        What a causal part gives is a token's first, and overwrites what stood there.
        """
        here, part = self.keys.view(total), self.keys.unbatch(part)
        if self.causal:
            here.copy_(part)
        else:
            here.add_(part)


@dataclass(frozen=True)
class RetrievedPart:
    """Queries and the memory blocks that their choices name: keys gathered."""

    queries: Stretches
    run: Run
    block_size: int
    causal: bool = False

    def gather(self, x: Tensor, blocks: Tensor) -> Tensor:
        """The retrieved keys or values of x [B, G, L, D]: [N, G, retrieved * S, D]."""
        rows = self.queries.rows
        return retrieve(x[rows], blocks[rows], self.run, self.block_size)

    def give_back(self, total: Tensor, part: Tensor, blocks: Tensor) -> None:
        """Adds ``part``, the gradient of what ``gather`` returned, into total [B, G, L, D]."""
        rows = self.queries.rows
        give_back(total[rows], part, blocks[rows], self.run, self.block_size)


class Part(Protocol):
    """What attention is computed for at a time: queries in a row, and keys that ``gather`` brings."""

    @property
    def queries(self) -> Stretches:
        """Where the queries lie."""
        ...

    @property
    def causal(self) -> bool:
        """Whether a query sees the keys up to itself alone."""
        ...

    def gather(self, x: Tensor, blocks: Tensor) -> Tensor:
        """The part's keys or values [N, G, keys, D], from where x holds them."""
        ...

    def give_back(self, total: Tensor, part: Tensor, blocks: Tensor) -> None:
        """Adds the gradient of what ``gather`` returned into that of x."""
        ...


def cut_into_parts(q: Tensor, layout: Layout, counts: tuple[int, ...]) -> Iterator[OwnPart | RetrievedPart]:
    """All that the queries q [B, H, L, D] see, each (query, key) pair in one part.

    ``counts``: how many blocks each choice retrieves.
    """
    tokens = max(_TOKENS, q.shape[2] // _SHARE)
    # The kernel's backward works through one head of one batch element per thread.
    pieces = -(-2 * torch.get_num_threads() // q.shape[1])
    for rows, run in _split(layout.chunk_runs(), q.shape[0], layout.block_size, tokens, pieces):
        for tiles in cut_triangle(run.length, tokens):
            yield _own_part(rows, run, tiles)
    retrieving = (run for run in layout.choice_runs(counts) if run.retrieved)
    for rows, run in _split(retrieving, q.shape[0], layout.block_size, tokens, pieces):
        queries = Stretches(rows, run.start, run.pieces, run.length, 1, run.length, run.length)
        yield RetrievedPart(queries, run, layout.block_size)


def _own_part(rows: slice, run: Run, tiles: Tiles) -> OwnPart:
    start = run.start + tiles.start
    keys = Stretches(rows, start, run.pieces, run.length, tiles.count, tiles.step, tiles.keys)
    if tiles.causal:
        return OwnPart(keys, keys, causal=True)
    return OwnPart(replace(keys, start=start + tiles.keys, length=tiles.queries), keys, causal=False)


def _split(
    runs: Iterable[Run], batch: int, block_size: int, tokens: int, least: int
) -> Iterator[tuple[slice, Run]]:
    """Rows and a part of a run, over and over, until every run is used up in every row.

    A part has about ``tokens`` queries or retrieved keys, and ``least`` pieces if there are so many.
    """
    for run in runs:
        wanted = max(least, tokens // max(run.length, run.retrieved * block_size))
        pieces, rows = min(wanted, run.pieces), max(1, wanted // run.pieces)
        for row in range(0, batch, rows):
            for piece in range(0, run.pieces, pieces):
                part = replace(
                    run,
                    start=run.start + piece * run.length,
                    pieces=min(pieces, run.pieces - piece),
                    first_choice=run.first_choice + piece,
                )
                yield slice(row, min(row + rows, batch)), part
