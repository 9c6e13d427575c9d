"""Kernels that choose memory blocks by sums of queries: summaries, the sums, relevancies ranked tile by tile.

Products are in full float32 here: a choice that rounding turned would be another attention.
"""

from __future__ import annotations

import triton
import triton.language as tl

from se_model.span.kernels.common import load_rows
from se_model.span.kernels.ranking import BEYOND, NOTHING, ids_of_rows, keep_best_of_rows, rank


@triton.jit(do_not_specialize=["block_count"])
def summarise_kernel(
    q, k, v, summaries, blocks,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    block_count, heads, groups, scale,
    D: tl.constexpr, S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
    SUMMARY: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """c_j, one program per block and (batch, head).

    q: [B, H, L, D]; k, v: [B, G, L, D]; blocks: int32 [programs, 2] of ``tables.retrievable_blocks``; scale:
    of the logits, times log2(e) -> summaries: [B, H, U, D], float32 or, for "key_bounds", k's dtype. For
    "mean_key" and "key_bounds" the heads are the key/value heads, and "key_bounds" writes [B, 2 G, U, D]: a
    head's largest keys, then its least.
    """
    first, block = tl.load(blocks + tl.program_id(0) * 2), tl.load(blocks + tl.program_id(0) * 2 + 1)
    row = tl.program_id(1)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    group = head // (heads // groups)
    rows = tl.arange(0, BLOCK_S)
    inside = rows < S
    columns = tl.arange(0, BLOCK_D)
    keys = load_rows(k + batch * k_batch + group * k_head, first + rows, inside, k_token, D, BLOCK_D)
    if SUMMARY == "key_bounds":
        keys = keys.to(tl.float32)
        place = summaries + (row.to(tl.int64) * 2 * block_count + block) * D + columns
        low = tl.min(tl.where(inside[:, None], keys, float("inf")), 0)
        tl.store(place + block_count.to(tl.int64) * D, low, mask=columns < D)
        summary = tl.max(tl.where(inside[:, None], keys, float("-inf")), 0)
    else:
        place = summaries + (row.to(tl.int64) * block_count + block) * D + columns
        if SUMMARY == "mean_key":
            summary = tl.sum(keys.to(tl.float32), 0) / S
        else:
            q += batch * q_batch + head * q_head
            v += batch * v_batch + group * v_head
            queries = load_rows(q, first + rows, inside, q_token, D, BLOCK_D)
            values = load_rows(v, first + rows, inside, v_token, D, BLOCK_D)
            if UPCAST:
                queries = queries.to(tl.float32)
                keys = keys.to(tl.float32)
            logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
            logits = tl.where(inside[None, :], logits, float("-inf"))
            weights = tl.exp2(logits - tl.max(logits, 1)[:, None])
            weights = tl.where(inside[:, None], weights / tl.sum(weights, 1)[:, None], 0.0)
            # The mean of softmax(Q K^T) V over its rows is the mean of the softmax, times V.
            summary = tl.sum((tl.sum(weights, 0) / S)[:, None] * values.to(tl.float32), 0)
    tl.store(place, summary, mask=columns < D)


@triton.jit(do_not_specialize=["choices"])
def sum_queries_kernel(
    q, sums, choice_tiles,
    q_batch, q_head, q_token,
    choices, heads,
    PARTS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sum of each choice's queries, one program per choice and (batch, head).

    q: [B, H, L, D]; choice_tiles: int32 [choices, 2] -> sums: float32 [B, H, choices, D]; with ``PARTS``
    [B, 2 H, choices, D]: of each head the sum of what is positive, then of what is negative.
    """
    choice = tl.program_id(0)
    first, end = tl.load(choice_tiles + choice * 2), tl.load(choice_tiles + choice * 2 + 1)
    row = tl.program_id(1)
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    q += batch * q_batch + head * q_head
    # Without parts the first is the sum of all.
    positive = tl.zeros([BLOCK_D], tl.float32)
    negative = tl.zeros([BLOCK_D], tl.float32)
    for token in range(first, end, BLOCK_M):
        tokens = token + tl.arange(0, BLOCK_M)
        queries = load_rows(q, tokens, tokens < end, q_token, D, BLOCK_D).to(tl.float32)
        if PARTS:
            positive += tl.sum(tl.maximum(queries, 0.0), 0)
            negative += tl.sum(tl.minimum(queries, 0.0), 0)
        else:
            positive += tl.sum(queries, 0)
    columns = tl.arange(0, BLOCK_D)
    if PARTS:
        place = sums + (row.to(tl.int64) * 2 * choices + choice) * D + columns
        tl.store(place + choices.to(tl.int64) * D, negative, mask=columns < D)
    else:
        place = sums + (row.to(tl.int64) * choices + choice) * D + columns
    tl.store(place, positive, mask=columns < D)


@triton.jit(do_not_specialize=["block_count", "choices", "width"])
def choose_kernel(
    sums, summaries, candidates, chosen,
    block_count, choices, width,
    SHARING: tl.constexpr, SUMMARY_SHARING: tl.constexpr, SHIFT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """The most relevant blocks of ``BLOCK_T`` choices, one program per such tile and (batch, key/value head).

    sums: float32 [B, G * SHARING, choices, D]; summaries: float32 [B, G * SUMMARY_SHARING, U, D], where
    SUMMARY_SHARING is SHARING or 1, or 2 for sums and summaries in two parts; candidates: int32 [choices, 2];
    SHIFT: how many choices before its own judge -> chosen: int64 [B, G, choices, width], ascending, -1 where
    there is none.
    """
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = at < choices
    lowest = tl.load(candidates + at * 2, mask=inside, other=BEYOND)
    highest = tl.load(candidates + at * 2 + 1, mask=inside, other=0)
    judges = tl.maximum(at - SHIFT, 0)
    best = tl.full([BLOCK_T, BLOCK_WIDTH], NOTHING, tl.int64)
    # Where no choice has a candidate the loop starts at its end, not at BEYOND: a GPU loads ahead, and BEYOND
    # plus a step is a negative number.
    last = tl.max(highest)
    for start in range(tl.minimum(tl.min(tl.where(highest > lowest, lowest, BEYOND)), last), last, BLOCK_U):
        blocks = start + tl.arange(0, BLOCK_U)
        relevancy = tl.zeros([BLOCK_T, BLOCK_U], tl.float32)
        for head in range(0, SHARING):
            queries = load_rows(sums + (row * SHARING + head) * choices * D, judges, inside, D, D, BLOCK_D)
            summary_head = row * SUMMARY_SHARING + head % SUMMARY_SHARING
            rows = load_rows(
                summaries + summary_head * block_count * D, blocks, blocks < block_count, D, D, BLOCK_D
            )
            relevancy += tl.dot(queries, tl.trans(rows), input_precision="ieee")
        open_ = (blocks[None, :] >= lowest[:, None]) & (blocks[None, :] < highest[:, None])
        ranks = tl.where(open_, rank(relevancy, blocks[None, :]), NOTHING)
        best = keep_best_of_rows(best, ranks, BLOCK_T, BLOCK_WIDTH)
    slots = tl.arange(0, BLOCK_WIDTH)[None, :]
    ids = ids_of_rows(best, width, BLOCK_WIDTH)
    place = chosen + (row * choices + at.to(tl.int64)[:, None]) * width + slots
    tl.store(place, tl.where(ids == BEYOND, -1, ids), mask=inside[:, None] & (slots < width))
