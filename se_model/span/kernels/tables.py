"""Where each program of a kernel works: int32 tables from the layout, and the tile sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor

from se_model.span.layout import Layout


@dataclass(frozen=True)
class Tile:
    """How one kernel is cut: rows of queries and keys at a time, groups of 32 threads, loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiling:
    """The tiles of the attention kernels (forward, dQ, dK with dV), and of the ranking of blocks.

    ``choices`` and ``blocks``: rows and columns of the relevancies that one program ranks at a time.
    """

    forward: Tile
    for_queries: Tile
    for_keys: Tile
    choices: int = 16
    blocks: int = 64


# By bytes in a row, what fits the 163 KiB of shared memory of an A100 and, in 16 bits, nearly or wholly the
# 255 registers of a thread, as ptxas reports it. The interpreter's are small, so that small rows have many.
_TILINGS = {
    128: Tiling(Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
    256: Tiling(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(32, 128, 8, 3)),
    512: Tiling(Tile(128, 32, 8, 2), Tile(64, 32, 8, 2), Tile(32, 64, 8, 2)),
}
_TILINGS_FLOAT32 = {
    256: Tiling(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
    512: Tiling(Tile(64, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2)),
    1024: Tiling(Tile(32, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
}
_INTERPRETED = Tiling(Tile(32, 16, 4, 1), Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), choices=4, blocks=8)


def choose_tiling(block_d: int, dtype: torch.dtype, *, interpreted: bool) -> Tiling:
    """The tiles for rows of ``block_d`` numbers, a power of two."""
    if interpreted:
        return _INTERPRETED
    tilings = _TILINGS_FLOAT32 if dtype == torch.float32 else _TILINGS
    return tilings[max(min(tilings), block_d * dtype.itemsize)]


def judging_tile(block_d: int, *, interpreted: bool) -> Tile:
    """The tile of kernels that compare queries with summaries ("keys"), for rows of ``block_d`` numbers.

    In float32 without tensor cores more rows at a time would not stay in registers, as ptxas reports it.
    """
    if interpreted:
        return Tile(16, 8, 4, 1)
    return Tile(16, 64, 4, 2) if block_d <= 128 else Tile(16, 32, 8, 2)


def tile_of(rows: int, largest: int | None = None) -> int:
    """A tile for ``rows`` rows: a power of two of at least 16, the least that tl.dot takes."""
    tile = max(16, triton.next_power_of_2(rows))
    return tile if largest is None else min(tile, largest)


@lru_cache(maxsize=256)
def query_tiles(layout: Layout, size: int, device: torch.device) -> Tensor:
    """(first query, end, first token of the chunk, choice) of tiles of at most ``size`` queries.

    A tile lies within one choice. int32 [tiles, 4].
    """
    return _table(
        (
            (start, min(start + size, last), document.start + chunk, document.first_choice + choice)
            for document in layout.documents
            for choice in range(layout.choices_of(document))
            for first, last in [_choice(layout, document.start, document.end, choice)]
            for chunk in [choice * layout.refresh // layout.chunk_size * layout.chunk_size]
            for start in range(first, last, size)
        ),
        4,
        device,
    )


@lru_cache(maxsize=256)
def key_tiles(layout: Layout, size: int, device: torch.device) -> Tensor:
    """(first key, end, end of the chunk) of tiles of at most ``size`` keys.

    A tile lies within one chunk. int32 [tiles, 3].
    """
    return _table(
        (
            (first, min(first + size, end), end)
            for run in layout.chunk_runs()
            for start in range(run.start, run.tokens.stop, run.length)
            for end in [start + run.length]
            for first in range(start, end, size)
        ),
        3,
        device,
    )


@lru_cache(maxsize=256)
def choice_table(layout: Layout, device: torch.device) -> Tensor:
    """(first query, end) of every choice: int32 [choices, 2]."""
    return _table(
        (
            _choice(layout, document.start, document.end, choice)
            for document in layout.documents
            for choice in range(layout.choices_of(document))
        ),
        2,
        device,
    )


@lru_cache(maxsize=256)
def block_table(layout: Layout, device: torch.device) -> Tensor:
    """(first token, end) of every memory block, partial ones included: int32 [U, 2]."""
    return _table(
        (
            (start, min(start + layout.block_size, document.end))
            for document in layout.documents
            for start in range(document.start, document.end, layout.block_size)
        ),
        2,
        device,
    )


@lru_cache(maxsize=256)
def block_tiles(layout: Layout, size: int, device: torch.device) -> Tensor:
    """(first key, end, block) of tiles of at most ``size`` keys of every block: int32 [tiles, 3]."""
    return _table(
        (
            (first, min(first + size, start + layout.block_size, document.end), block)
            for document in layout.documents
            for block, start in enumerate(
                range(document.start, document.end, layout.block_size), document.first_block
            )
            for first in range(start, min(start + layout.block_size, document.end), size)
        ),
        3,
        device,
    )


@lru_cache(maxsize=256)
def retrievable_blocks(layout: Layout, device: torch.device) -> Tensor:
    """(first token, id) of every block that is some choice's candidate, a whole one: int32 [blocks, 2]."""
    return _table(
        (
            (document.start + block * layout.block_size, document.first_block + block)
            for document in layout.documents
            for block in range(layout.candidates(layout.choices_of(document) - 1))
        ),
        2,
        device,
    )


@lru_cache(maxsize=256)
def candidate_table(layout: Layout, device: torch.device) -> Tensor:
    """(first candidate, end) of every choice, in ids of blocks: int32 [choices, 2]."""
    return _table(
        (
            (document.first_block, document.first_block + layout.candidates(choice))
            for document in layout.documents
            for choice in range(layout.choices_of(document))
        ),
        2,
        device,
    )


@lru_cache(maxsize=256)
def judged_choices(layout: Layout, shift: int, device: torch.device) -> Tensor:
    """(choice, first query that may judge, end, first candidate, end) of the choices with candidates.

    The queries are those of the choice ``shift`` before, of the same document: int32 [choices, 5].
    """
    return _table(
        (
            (
                document.first_choice + choice,
                *_choice(layout, document.start, document.end, choice - shift),
                document.first_block,
                document.first_block + layout.candidates(choice),
            )
            for document in layout.documents
            for choice in range(layout.choices_of(document))
            if layout.candidates(choice)
        ),
        5,
        device,
    )


@lru_cache(maxsize=256)
def judge_table(layout: Layout, shift: int, step: int, device: torch.device) -> Tensor:
    """Of every judged choice each ``step``-th query, the first included, then -1: int32 [choices, judges]."""
    _, first, end, _, _ = judged_choices(layout, shift, device).split(1, dim=1)
    tokens = first + torch.arange(0, layout.refresh, step, dtype=torch.int32, device=device)
    return tokens.masked_fill_(tokens >= end, -1)


def _choice(layout: Layout, start: int, end: int, choice: int) -> tuple[int, int]:
    first = start + choice * layout.refresh
    return first, min(first + layout.refresh, end)


def _table(rows: Iterable[tuple[int, ...]], columns: int, device: torch.device) -> Tensor:
    return torch.tensor(list(rows), dtype=torch.int32).reshape(-1, columns).to(device)
