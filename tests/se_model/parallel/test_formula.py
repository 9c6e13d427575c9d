"""The bytes that layers exchange, against counts by hand."""

from dataclasses import replace

import pytest

from se_model.parallel.formula import (
    Heads,
    Share,
    Volume,
    convolution,
    full_attention,
    local_attention,
    span_attention,
    state_space,
)

HEADS = Heads(query=8, key_value=2, size=64)
SHARE = Share(ranks=4, rows=1, tokens=4096, itemsize=2)
PAIR = 2 * 2 * 64  # numbers in keys and values of one token
SPAN = {"chunk_size": 256, "block_size": 32, "top_k": 2}


def test_span_attention_receives_summaries_and_the_blocks_that_its_chunks_chose() -> None:
    # Of three other ranks with 32 blocks and 4 chunks each, in float32; four own chunks, two blocks each.
    gathered, blocks = 3 * (32 + 4) * 8 * 64 * 4, 4 * 2 * 32 * PAIR
    requests = 3 * 8 + 4 * 2 * 2 * 8
    assert span_attention(SHARE, HEADS, **SPAN) == Volume(gathered + blocks * 2 + requests, blocks * 4)
    by_key = span_attention(SHARE, HEADS, **SPAN, summary="mean_key")
    assert by_key == Volume(gathered // 4 + blocks * 2 + requests, blocks * 4)
    assert span_attention(SHARE, HEADS, **SPAN, refresh=64).backward == 4 * blocks * 4


def test_no_block_arrives_twice() -> None:
    many = span_attention(SHARE, HEADS, **SPAN | {"top_k": 10_000})
    assert many.backward == 2 * full_attention(SHARE, HEADS).forward == 3 * 1024 * PAIR * 4


def test_a_chunk_on_two_ranks_brings_what_stands_before_the_shard() -> None:
    plain, packed = (span_attention(replace(SHARE, packed=each), HEADS, **SPAN) for each in (False, True))
    queries, ids = 31 * 8 * 64 * 2, 2 * 2 * 8
    assert packed == plain + Volume(255 * PAIR * 2 + queries + ids, 255 * PAIR * 4)


def test_local_attention_reaches_as_far_as_there_are_tokens() -> None:
    assert local_attention(SHARE, HEADS, 100).forward == 100 * PAIR * 2
    assert local_attention(SHARE, HEADS, 1025) == full_attention(SHARE, HEADS)
    assert full_attention(SHARE, HEADS) == Volume(3 * 1024 * PAIR * 2, 3 * 1024 * PAIR * 2)


def test_what_does_not_depend_on_length() -> None:
    assert convolution(SHARE, channels=100, kernel=4) == Volume(3 * 100 * 2, 3 * 100 * 2)
    each = 3 * 16 * (64 * 128 + 1) * 4
    assert state_space(SHARE, heads=16, head_size=64, state_size=128) == Volume(each, each)


def test_one_rank_exchanges_nothing() -> None:
    share = replace(SHARE, ranks=1, packed=True)
    assert span_attention(share, HEADS, **SPAN) == Volume()
    assert local_attention(share, HEADS, 9) == full_attention(share, HEADS) == Volume()
    assert convolution(share, channels=8, kernel=4) == Volume()
    assert state_space(share, heads=2, head_size=4, state_size=8) == Volume()


@pytest.mark.parametrize("top_k", [8, 16])
def test_retrieval_costs_the_same_on_every_number_of_ranks_and_gathering_keys_ever_more(top_k: int) -> None:
    span, gathered = [], []
    for ranks in (4, 8, 64):
        share = replace(SHARE, ranks=ranks, tokens=ranks * 16_384)
        whole = span_attention(share, HEADS, chunk_size=2048, block_size=32, top_k=top_k)
        span.append(whole.backward)
        gathered.append(full_attention(share, HEADS).backward)
    assert span == [8 * top_k * 32 * PAIR * 4] * 3
    assert gathered == [(ranks - 1) * 16_384 * PAIR * 2 for ranks in (4, 8, 64)]
