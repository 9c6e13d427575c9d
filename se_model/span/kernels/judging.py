"""Kernels that choose memory blocks by single queries: who judges, each judge's softmax, relevancies ranked.

They work on *judged* choices, those that have candidates: rows (choice, first query that may judge, end,
first candidate, end) of ``tables.judged_choices``. The comparisons of a choice's judges with its candidates
are made twice where shares are compared, once for the log-sum-exp of each judge, once to rank the blocks:
they are never in memory. Products are exact or in full float32: a choice that rounding turned would be
another attention.
"""

from __future__ import annotations

import triton
import triton.language as tl

from se_model.span.kernels.common import load_rows
from se_model.span.kernels.ranking import NOTHING, keep_best, rank, store_ids


@triton.jit(do_not_specialize=["rows", "kept"])
def representatives_kernel(
    x, tokens, ranges,
    x_batch, x_head, x_token, ranges_row,
    rows, kept, heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """The queries or keys of a range farthest from its mean, one program per range and (batch, head).

    Distances are computed in float64 and compared in float32, as ``selection.representatives`` says.

    x: [B, H, L, D]; ranges: int32 [rows, 2], first and end of each; ``kept``: how many, at most BLOCK_WIDTH
    -> tokens: int32 [B, H, rows, kept], ascending, -1 where a range has fewer.
    """
    place = tl.program_id(0)
    first, end = tl.load(ranges + place * ranges_row), tl.load(ranges + place * ranges_row + 1)
    row = tl.program_id(1).to(tl.int64)
    x += row // heads * x_batch + row % heads * x_head
    total = tl.zeros([BLOCK_D], tl.float64)
    for token in range(first, end, BLOCK_M):
        at = token + tl.arange(0, BLOCK_M)
        total += tl.sum(load_rows(x, at, at < end, x_token, D, BLOCK_D).to(tl.float64), 0)
    mean = total / (end - first).to(tl.float64)
    best = tl.full([BLOCK_WIDTH], NOTHING, tl.int64)
    for token in range(first, end, BLOCK_M):
        at = token + tl.arange(0, BLOCK_M)
        apart = load_rows(x, at, at < end, x_token, D, BLOCK_D).to(tl.float64) - mean[None, :]
        distances = tl.sum(apart * apart, 1).to(tl.float32)
        best = keep_best(best, tl.where(at < end, rank(distances, at), NOTHING), BLOCK_WIDTH)
    store_ids(tokens + (row * rows + place) * kept, best, kept, BLOCK_WIDTH)


@triton.jit
def _compare(
    queries, summaries, blocks, block_count,
    SUMMARY: tl.constexpr, VECTORS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The score of each of queries [R, BLOCK_D] with each of ``blocks`` [U]: float32 [R, U].

    summaries: where the head's begin, [U, D], of queries' dtype: float32, or halves, whose products tensor
    cores add up in float32; for "key_bounds" [2, U, D], upper bounds and lower ones, for
    "representative_keys" [VECTORS, U, D]. A logit with keys between bounds is at most
    max(q, 0) . high + min(q, 0) . low.
    """
    inside = blocks < block_count
    next_vector = block_count.to(tl.int64) * D
    if SUMMARY == "representative_keys":
        # A loop, not unrolled: all vectors' rows at once do not stay in registers.
        scores = tl.full([queries.shape[0], blocks.shape[0]], float("-inf"), tl.float32)
        for vector in range(VECTORS):
            rows = load_rows(summaries + vector * next_vector, blocks, inside, D, D, BLOCK_D)
            scores = tl.maximum(scores, tl.dot(queries, tl.trans(rows), input_precision="ieee"))
        return scores
    rows = load_rows(summaries, blocks, inside, D, D, BLOCK_D)
    if SUMMARY == "key_bounds":
        positive, negative = tl.maximum(queries, 0.0).to(rows.dtype), tl.minimum(queries, 0.0).to(rows.dtype)
        scores = tl.dot(positive, tl.trans(rows), input_precision="ieee")
        rows = load_rows(summaries + next_vector, blocks, inside, D, D, BLOCK_D)
        return tl.dot(negative, tl.trans(rows), scores, input_precision="ieee")
    return tl.dot(queries, tl.trans(rows), input_precision="ieee")


@triton.jit(do_not_specialize=["block_count", "rows", "judges"])
def normalise_kernel(
    q, summaries, tokens, judged, normalisers,
    q_batch, q_head, q_token, tokens_head,
    block_count, rows, judges, heads, scale,
    SHARING: tl.constexpr, SUMMARY: tl.constexpr, VECTORS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_U: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp, base 2, of each judge's scaled scores with the candidates of the choice it judges for.

    One program per tile of ``BLOCK_R`` judges of a judged choice and (batch, head). The arguments are those
    of ``choose_judged_kernel`` -> normalisers: float32 [B, H, rows, judges], meaningless where nobody judges.
    """
    tiles = (judges + BLOCK_R - 1) // BLOCK_R
    choice = tl.program_id(0) // tiles
    slots = tl.program_id(0) % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    lowest, highest = tl.load(judged + choice * 5 + 3), tl.load(judged + choice * 5 + 4)
    row = tl.program_id(1).to(tl.int64)
    head = row % heads
    at = tl.load(tokens + row * tokens_head + choice * judges + slots, mask=slots < judges, other=-1)
    q += row // heads * q_batch + head * q_head
    queries = load_rows(q, at, at >= 0, q_token, D, BLOCK_D).to(summaries.dtype.element_ty)
    member = head % SHARING if SUMMARY == "attention" else 0
    summaries += (row // SHARING * VECTORS + member) * block_count * D
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for start in range(lowest, highest, BLOCK_U):
        blocks = start + tl.arange(0, BLOCK_U)
        scores = _compare(queries, summaries, blocks, block_count, SUMMARY, VECTORS, D, BLOCK_D) * scale
        scores = tl.where(blocks[None, :] < highest, scores, float("-inf"))
        raised = tl.maximum(best, tl.max(scores, 1))
        total = total * tl.exp2(best - raised) + tl.sum(tl.exp2(scores - raised[:, None]), 1)
        best = raised
    place = normalisers + (row * rows + choice) * judges + slots
    tl.store(place, best + tl.log2(total), mask=slots < judges)


@triton.jit(do_not_specialize=["block_count", "rows", "choices", "judges", "width"])
def choose_judged_kernel(
    q, summaries, tokens, judged, normalisers, chosen,
    q_batch, q_head, q_token, tokens_head,
    block_count, rows, choices, judges, width, heads, scale,
    SHARING: tl.constexpr, SUMMARY: tl.constexpr, VECTORS: tl.constexpr, RELEVANCY: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """The most relevant blocks of a judged choice, one program per such choice and (batch, key/value head).

    q: [B, G * SHARING, L, D]; summaries: [B, G * VECTORS, U, D], in float32 or q's dtype, where VECTORS is
    SHARING for the summary "attention"; tokens: int32 [B, H, rows, judges], the queries that judge for each
    choice, -1 for none; tokens_head: from one head to the next, 0 where all have the same; judged: int32
    [rows, 5]; normalisers: of ``normalise_kernel``, read where shares are compared; scale: of logits,
    times log2(e) -> chosen: int64 [B, G, choices, width], ascending, then -1; of judged choices alone.
    """
    place = judged + tl.program_id(0) * 5
    choice, lowest, highest = tl.load(place), tl.load(place + 3), tl.load(place + 4)
    group = tl.program_id(1).to(tl.int64)
    tokens += tl.program_id(0) * judges
    normalisers += tl.program_id(0).to(tl.int64) * judges
    best = tl.full([BLOCK_WIDTH], NOTHING, tl.int64)
    for start in range(lowest, highest, BLOCK_U):
        blocks = start + tl.arange(0, BLOCK_U)
        relevancy = tl.zeros([BLOCK_U], tl.float32)
        for member in range(0, SHARING):
            row = group * SHARING + member
            q_of_head = q + row // heads * q_batch + row % heads * q_head
            summary_head = group * VECTORS + (member if SUMMARY == "attention" else 0)
            summaries_of_head = summaries + summary_head * block_count * D
            largest: tl.constexpr = RELEVANCY == "max" or RELEVANCY == "peak"
            of_head = tl.full([BLOCK_U], float("-inf") if largest else 0.0, tl.float32)
            for slot in range(0, judges, BLOCK_R):
                slots = slot + tl.arange(0, BLOCK_R)
                inside = slots < judges
                at = tl.load(tokens + row * tokens_head + slots, mask=inside, other=-1)
                queries = load_rows(q_of_head, at, at >= 0, q_token, D, BLOCK_D)
                scores = _compare(
                    queries.to(summaries.dtype.element_ty), summaries_of_head, blocks, block_count,
                    SUMMARY, VECTORS, D, BLOCK_D,
                )  # fmt: skip
                if RELEVANCY == "mass" or RELEVANCY == "peak":
                    given = tl.load(normalisers + row * rows * judges + slots, mask=inside, other=0.0)
                    scores = tl.exp2(scores * scale - given[:, None])
                there = (at >= 0)[:, None]
                if largest:
                    of_head = tl.maximum(of_head, tl.max(tl.where(there, scores, float("-inf")), 0))
                else:
                    of_head += tl.sum(tl.where(there, scores, 0.0), 0)
            relevancy += of_head
        best = keep_best(best, tl.where(blocks < highest, rank(relevancy, blocks), NOTHING), BLOCK_WIDTH)
    store_ids(chosen + (group * choices + choice) * width, best, width, BLOCK_WIDTH)
