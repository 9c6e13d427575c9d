"""Every token of a row lies on one rank, and knows its place in its document."""

from __future__ import annotations

import pytest
import torch

from se_model.parallel import ContextParallelGroup, SequenceShard
from se_model.parallel.shard import cut_bounds, pieces, shard_length
from tests.distributed import run_distributed


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, 12), [(0, 4), (4, 8), (8, 12)]),
        ((0, 4, 12), [(0, 4), (4, 8), (8, 12)]),
        ((0, 3, 5, 12), [(0, 3, 4), (4, 5, 8), (8, 12)]),
        ((0, 1, 2, 11, 12), [(0, 1, 2, 4), (4, 8), (8, 11, 12)]),
    ],
)
def test_documents_are_cut_where_shards_are(bounds: tuple[int, ...], expected: list[tuple[int, ...]]) -> None:
    assert [cut_bounds(bounds, start, start + 4) for start in (0, 4, 8)] == expected


def test_a_piece_knows_how_much_of_its_document_lies_before() -> None:
    bounds = (0, 3, 11, 12)
    assert pieces(bounds, 0, 4) == [(0, 3, 0), (3, 4, 0)]
    assert pieces(bounds, 4, 8) == [(4, 8, 1)]
    assert pieces(bounds, 8, 12) == [(8, 11, 5), (11, 12, 0)]


@pytest.mark.parametrize(
    ("length", "ranks", "chunk", "message"),
    [
        (10, 4, 1, "10 tokens cannot be cut into 4 equal shards"),
        (64, 4, 32, "more ranks than chunks: a row of 64 tokens has 2 chunks of 32, context_parallel is 4"),
        (96, 2, 32, r"48 each, no multiple of the largest chunk \(32\)"),
    ],
)
def test_what_does_not_divide_is_refused(length: int, ranks: int, chunk: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shard_length(length, ranks, chunk)
    assert shard_length(128, 2, 32) == 64


def describe(rank: int, ranks: int, bounds: list[int]) -> tuple[object, ...]:
    shard = SequenceShard.of(ContextParallelGroup(), bounds[-1], torch.tensor(bounds), chunk_multiple=2)
    places = shard.position_ids("cpu")
    assert places.dtype == torch.int64
    documents = shard.documents
    local = None if documents is None else documents.bounds
    return shard.tokens, shard.local_bounds, shard.continues_left, places.tolist(), local


def test_every_rank_knows_its_own_tokens() -> None:
    assert run_distributed(describe, 3, [0, 3, 8, 12]) == [
        (slice(0, 4), (0, 3, 4), False, [[0, 1, 2, 0]], (0, 3, 4)),
        (slice(4, 8), (0, 4), True, [[1, 2, 3, 4]], None),
        (slice(8, 12), (0, 4), False, [[0, 1, 2, 3]], None),
    ]
