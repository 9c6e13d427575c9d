"""The bytes that layers exchange, against counts by hand."""

from dataclasses import replace

import pytest

from se_model.parallel.formula import (
    Heads,
    Share,
    Volume,
    convolution,
    delta_rule,
    full_attention,
    ring_attention,
    selective_scan,
    span_attention,
    state_space,
    ulysses_attention,
    window_attention,
)

HEADS = Heads(query=8, key_value=2, size=64)
SHARE = Share(ranks=4, rows=1, tokens=4096, itemsize=2)
TOKEN = 2 * 2 * 64 * 2  # keys and values of one token, bf16
SPAN = {"chunk_size": 256, "block_size": 32, "top_k": 2}


def test_span_attention_receives_summaries_and_the_blocks_that_its_chunks_chose() -> None:
    # Of three other ranks with 32 blocks and 4 chunks each, per query head.
    summaries = 3 * (32 + 4) * 8 * 64 * 4
    retrieved = 4 * 2 * 32 * TOKEN  # four chunks, two blocks each
    asked = 8 * (3 + 2 * 4 * 2)  # three counts, and the blocks of two heads
    # What is SHARE's bfloat16 on its way out comes back in float32.
    assert span_attention(SHARE, HEADS, **SPAN) == Volume(summaries + retrieved + asked, 2 * retrieved)
    by_key = span_attention(SHARE, HEADS, **SPAN, summary="mean_key")
    assert by_key == Volume(summaries // 4 + retrieved + asked, 2 * retrieved)
    assert span_attention(SHARE, HEADS, **SPAN, refresh=64).backward == 4 * 2 * retrieved


def test_keys_and_their_bounds_travel_as_keys_do_and_queries_that_judge_only_from_a_neighbour() -> None:
    paper, mean_key = span_attention(SHARE, HEADS, **SPAN), 3 * (32 + 4) * 2 * 64 * 4
    retrieved = paper.forward - 4 * mean_key
    bounds, query = 3 * 32 * 2 * 2 * 64 * 2, 8 * 64 * 2
    judged = span_attention(SHARE, HEADS, **SPAN, summary="key_bounds", sums=False)
    assert judged == Volume(bounds + retrieved, paper.backward)
    keys = span_attention(SHARE, HEADS, **SPAN, summary="representative_keys", sums=False)
    assert keys == Volume(2 * bounds + retrieved, paper.backward)
    summed = span_attention(SHARE, HEADS, **SPAN, summary="key_bounds")
    assert summed.forward - judged.forward == 3 * 4 * 2 * 2 * 64 * 4
    causal, straddling = (
        span_attention(share, HEADS, **SPAN, summary="key_bounds", sums=False, refresh=refresh)
        for share, refresh in ((SHARE, 64), (replace(SHARE, packed=True), None))
    )
    summed_causal = span_attention(SHARE, HEADS, **SPAN, summary="key_bounds", refresh=64)
    assert causal.forward - summed_causal.forward == 64 * query - 3 * 16 * 2 * 2 * 64 * 4
    # Of a chunk on two ranks: its keys and values, and the queries that judge.
    assert straddling.forward == judged.forward + 255 * TOKEN + 255 * query


def test_values_of_another_width_count_by_their_own() -> None:
    wide, token = Heads(query=8, key_value=2, size=64, value_size=32), 2 * (64 + 32) * 2
    moved = 3 * 1024 * token
    assert full_attention(SHARE, wide) == Volume(moved, moved)
    assert window_attention(SHARE, wide, 101) == Volume(100 * token, 100 * token)
    numbers = 1024 * (8 * 64 + 2 * 64 + 2 * 32 + 8 * 32) * 2
    assert ulysses_attention(SHARE, wide).forward == numbers * 3 // 4
    by_key, equal = (span_attention(SHARE, heads, **SPAN, summary="mean_key") for heads in (wide, HEADS))
    blocks = 4 * 2 * 32  # tokens of four chunks' blocks, two each
    assert equal.forward - by_key.forward == blocks * (TOKEN - token)
    assert by_key.backward == 2 * blocks * token


def test_no_block_arrives_twice() -> None:
    many = span_attention(SHARE, HEADS, **SPAN | {"top_k": 10_000})
    assert many.backward == 2 * full_attention(SHARE, HEADS).forward == 2 * 3 * 1024 * TOKEN


def test_a_chunk_on_two_ranks_brings_the_keys_before_the_shard() -> None:
    straddling, aligned = (
        span_attention(replace(SHARE, packed=packed), HEADS, **SPAN) for packed in (True, False)
    )
    queries = 31 * 8 * 64 * 2
    assert straddling == aligned + Volume(255 * TOKEN + queries, 255 * 2 * TOKEN)


def test_peers_move_all_keys_or_all_heads() -> None:
    kv = 1024 * TOKEN
    assert ring_attention(SHARE, HEADS) == Volume(3 * kv, 6 * kv)
    numbers = 1024 * (8 + 2 + 2 + 8) * 64 * 2
    assert ulysses_attention(SHARE, HEADS) == Volume(numbers * 3 // 4, numbers * 3 // 4)


def test_a_window_reaches_as_far_as_there_are_tokens() -> None:
    assert window_attention(SHARE, HEADS, 101).forward == 100 * TOKEN
    assert window_attention(SHARE, HEADS, 1025).forward == 1024 * TOKEN
    # Beyond the rank before, keys are gathered from all.
    assert window_attention(SHARE, HEADS, 1026).forward == 3 * 1024 * TOKEN
    assert window_attention(SHARE, HEADS, 10**6).forward == 3 * 1024 * TOKEN


def test_what_does_not_depend_on_length() -> None:
    assert convolution(SHARE, channels=100, kernel=4) == Volume(3 * 100 * 2, 3 * 100 * 2)
    each = 3 * 16 * (64 * 128 + 1) * 4
    assert state_space(SHARE, heads=16, head_size=64, state_size=128) == Volume(each, each)
    each = 3 * 16 * (64 * 128 + 64 * 64) * 4
    assert delta_rule(SHARE, heads=16, key_size=64, value_size=128) == Volume(each, each)
    each = 3 * 2 * 8192 * 16 * 4
    assert selective_scan(SHARE, channels=8192, state_size=16) == Volume(each, each)


@pytest.mark.parametrize("rows", [1, 3])
def test_one_rank_exchanges_nothing_and_rows_add_up(rows: int) -> None:
    def volumes(share: Share) -> list[Volume]:
        return [
            span_attention(share, HEADS, **SPAN),
            full_attention(share, HEADS),
            ring_attention(share, HEADS),
            ulysses_attention(share, HEADS),
            window_attention(share, HEADS, 9),
            convolution(share, channels=8, kernel=4),
            state_space(share, heads=2, head_size=4, state_size=8),
            delta_rule(share, heads=2, key_size=4, value_size=8),
            selective_scan(share, channels=8, state_size=4),
        ]

    assert set(volumes(replace(SHARE, ranks=1, packed=True))) == {Volume()}
    span, *others = volumes(replace(SHARE, rows=rows))
    one, *single = volumes(SHARE)
    assert others == [each * rows for each in single]
    counts = Volume(3 * 8)  # how many blocks are asked of each other rank is told once for all rows
    assert span + counts * (rows - 1) == one * rows


def test_retrieval_costs_the_same_on_every_number_of_ranks_and_far_less_than_everybodys_keys() -> None:
    span, ring = [], []
    for ranks in (2, 8, 64):
        share = replace(SHARE, ranks=ranks, tokens=ranks * 16_384)
        whole = span_attention(share, HEADS, chunk_size=2048, block_size=32, top_k=8)
        span.append(whole.backward)
        ring.append(full_attention(share, HEADS).backward)
    assert span[0] == span[1] == span[2] == 2 * 8 * 8 * 32 * TOKEN
    assert ring == [(ranks - 1) * 16_384 * TOKEN for ranks in (2, 8, 64)]
