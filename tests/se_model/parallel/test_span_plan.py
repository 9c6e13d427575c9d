"""Which rank holds what, checked against lists that are made token by token."""

from itertools import pairwise

import pytest

from se_model.parallel.span_plan import owner_bounds, plan_ranks
from se_model.span.layout import cut

CHUNK, BLOCK, SHARD = 8, 4, 16


def rows(ranks):
    length = ranks * SHARD
    yield (0, length)
    yield (0, 16, length)
    yield (0, 15, length)
    yield (0, 17, length)
    yield (0, 1, 2, 3, 16, 18, 21, length - 1, length)
    yield (0, 5, length)


CASES = [(ranks, bounds) for ranks in (2, 4, 8) for bounds in rows(ranks)]


def pieces(bounds, size):
    """(first token, end) of every piece of ``size`` tokens, document after document."""
    return [
        (first, min(first + size, end))
        for start, end in pairwise(bounds)
        for first in range(start, end, size)
    ]


@pytest.mark.parametrize(("ranks", "bounds"), CASES, ids=str)
@pytest.mark.parametrize("refresh", [CHUNK, 2])
def test_every_rank_has_what_its_tokens_need(ranks, bounds, refresh):
    layout = cut(CHUNK, BLOCK, refresh, bounds)
    chunks, blocks, choices = (pieces(bounds, size) for size in (CHUNK, BLOCK, refresh))
    plans = plan_ranks(layout, ranks)
    for rank, plan in enumerate(plans):
        start, end = rank * SHARD, (rank + 1) * SHARD
        assert (plan.start, plan.end, plan.tokens) == (start, end, SHARD)
        (chunk,) = (first for first, last in chunks if first <= start < last)
        (block,) = (first for first, last in blocks if first <= start < last)
        assert (plan.head, plan.block_head) == (start - chunk, start - block)
        assert plan.head < CHUNK
        assert list(plan.blocks) == [j for j, (_, last) in enumerate(blocks) if start < last <= end]
        assert list(plan.choices) == [
            j for j, (first, last) in enumerate(choices) if first < end and start < last
        ]
        assert plan.shares_first == (choices[plan.choices[0]][0] < start)
        assert choices[plan.first_choice][0] == chunk


@pytest.mark.parametrize(("ranks", "bounds"), CASES, ids=str)
def test_a_rank_s_own_row_is_cut_where_the_whole_row_is(ranks, bounds):
    layout = cut(CHUNK, BLOCK, 2, bounds)
    for plan in plan_ranks(layout, ranks):
        first = plan.start - plan.head
        here = range(first, plan.end)
        for size in (CHUNK, BLOCK, 2):
            whole = {start - first for start, _ in pieces(bounds, size) if start in here}
            assert {start for start, _ in pieces(plan.own.bounds, size)} == whole
        assert plan.own.bounds[-1] == plan.head + SHARD
        for block in plan.blocks:
            start = plan.own.block_starts[block - plan.blocks.start + plan.first_own_block]
            assert start + first == layout.block_starts[block]


@pytest.mark.parametrize(("ranks", "bounds"), CASES, ids=str)
def test_every_block_has_one_owner(ranks, bounds):
    layout = cut(CHUNK, BLOCK, CHUNK, bounds)
    plans = plan_ranks(layout, ranks)
    assert [block for plan in plans for block in plan.blocks] == list(range(layout.blocks))
    assert owner_bounds(plans) == [plan.blocks.stop for plan in plans[:-1]]


@pytest.mark.parametrize(("length", "ranks"), [(30, 4), (24, 2), (16, 4)])
def test_shards_that_are_no_whole_chunks_are_refused(length, ranks):
    with pytest.raises(ValueError, match=f"a row of {length} tokens on {ranks} ranks .* chunk size 8"):
        plan_ranks(cut(CHUNK, BLOCK, CHUNK, (0, length)), ranks)
