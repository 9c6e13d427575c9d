"""Forward kernel: a tile of queries over its expansion span, then its own chunk, in one online softmax."""

from __future__ import annotations

import triton
import triton.language as tl

from se_model.span.kernels.common import count_filled, load_rows, product, span_tokens, store_rows


@triton.jit
def _accumulate(queries, keys, values, visible, best, total, mixed, scale, UPCAST: tl.constexpr):
    """One step of the online softmax: keys, values [N, BLOCK_D] join what ``queries`` [M, BLOCK_D] have seen.

    best, total: float32 [M], the largest logit so far and the sum of exponentials below it; mixed: float32
    [M, BLOCK_D], the values weighted alike. Logits are in units of log 2. Returns all three.
    """
    logits = tl.where(visible, product(queries, tl.trans(keys), UPCAST) * scale, float("-inf"))
    raised = tl.maximum(best, tl.max(logits, 1))
    weights = tl.exp2(logits - raised[:, None])
    shrink = tl.exp2(best - raised)
    mixed = mixed * shrink[:, None] + product(weights.to(values.dtype), values, UPCAST)
    return raised, total * shrink + tl.sum(weights, 1), mixed


@triton.jit(do_not_specialize=["length", "choices", "width"])
def attend_kernel(
    q, k, v, out, normalisers, tiles, starts,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    out_batch, out_head, out_token,
    length, choices, width, heads, groups, scale,
    D: tl.constexpr, S: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One program per tile of queries and (batch, head).

    q, out: [B, H, L, D]; k, v: [B, G, L, D]; normalisers: float32 [B, H, L], log-sum-exp of the logits, base
    2; tiles: int32 [programs, 4] of ``tables.query_tiles``; starts: int32 [B, G, choices, width], first
    tokens of the retrieved blocks, -1 for none; scale: of the logits, times log2(e).
    """
    tile = tiles + tl.program_id(0) * 4
    first, end, chunk, choice = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    head = tl.program_id(1)
    batch, head = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    group = head // (heads // groups)

    queries_at = first + tl.arange(0, BLOCK_M)
    inside = queries_at < end
    queries = load_rows(q + batch * q_batch + head * q_head, queries_at, inside, q_token, D, BLOCK_D)
    k += batch * k_batch + group * k_head
    v += batch * v_batch + group * v_head
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    offsets = tl.arange(0, BLOCK_N)

    starts += ((batch * groups + group) * choices + choice) * width
    span = count_filled(starts, width, BLOCK_WIDTH) * S
    for column in range(0, span, BLOCK_N):
        columns = column + offsets
        present = columns < span
        tokens = span_tokens(starts, columns, span, S)
        keys = load_rows(k, tokens, present, k_token, D, BLOCK_D)
        values = load_rows(v, tokens, present, v_token, D, BLOCK_D)
        best, total, mixed = _accumulate(
            queries, keys, values, present[None, :], best, total, mixed, scale, UPCAST
        )

    # Whole key tiles before the first query need no causal mask.
    diagonal = chunk + (first - chunk) // BLOCK_N * BLOCK_N
    everything = tl.full([1, BLOCK_N], True, tl.int1)
    for token in range(chunk, diagonal, BLOCK_N):
        tokens = token + offsets
        present = tokens < end
        keys = load_rows(k, tokens, present, k_token, D, BLOCK_D)
        values = load_rows(v, tokens, present, v_token, D, BLOCK_D)
        best, total, mixed = _accumulate(queries, keys, values, everything, best, total, mixed, scale, UPCAST)
    for token in range(diagonal, end, BLOCK_N):
        tokens = token + offsets
        present = tokens < end
        keys = load_rows(k, tokens, present, k_token, D, BLOCK_D)
        values = load_rows(v, tokens, present, v_token, D, BLOCK_D)
        seen = queries_at[:, None] >= tokens[None, :]
        best, total, mixed = _accumulate(queries, keys, values, seen, best, total, mixed, scale, UPCAST)

    out += batch * out_batch + head * out_head
    store_rows(out, mixed / total[:, None], queries_at, inside, out_token, D, BLOCK_D)
    normalisers += (batch * heads + head) * length
    tl.store(normalisers + queries_at, best + tl.log2(total), mask=inside)
