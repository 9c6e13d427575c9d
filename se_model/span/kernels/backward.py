"""Backward kernels: dQ runs like the forward; dK and dV gather from every query that saw the key.

Nothing is summed by atomics, so that two runs agree to the last bit. With P the softmax, dP = dO V^T and
delta the row sums of dO * O: dS = P * (dP - delta), dQ = dS K, dK = dS^T Q, dV = P^T dO.
"""

from __future__ import annotations

import triton
import triton.language as tl

from se_model.span.kernels.common import count_filled, load_rows, product, span_tokens, store_rows


@triton.jit(do_not_specialize=["length"])
def delta_kernel(
    out, grad, deltas,
    out_batch, out_head, out_token, grad_batch, grad_head, grad_token,
    length, heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Row sums of dO * O. out, grad: [B, H, L, D] -> deltas: float32 [B, H, L]."""
    tokens = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = tokens < length
    head = tl.program_id(1)
    batch, head = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    rows = load_rows(out + batch * out_batch + head * out_head, tokens, inside, out_token, D, BLOCK_D)
    grads = load_rows(grad + batch * grad_batch + head * grad_head, tokens, inside, grad_token, D, BLOCK_D)
    sums = tl.sum(rows.to(tl.float32) * grads.to(tl.float32), 1)
    tl.store(deltas + (batch * heads + head) * length + tokens, sums, mask=inside)


@triton.jit
def _add_to_queries(
    queries, grads, normaliser, delta, keys, values, visible, total, scale, UPCAST: tl.constexpr
):
    """Adds what keys, values [N, BLOCK_D] contribute to dQ / scale: ``total``, float32 [M, BLOCK_D]."""
    logits = product(queries, tl.trans(keys), UPCAST) * scale
    weights = tl.where(visible, tl.exp2(logits - normaliser[:, None]), 0.0)
    slopes = weights * (product(grads, tl.trans(values), UPCAST) - delta[:, None])
    return total + product(slopes.to(keys.dtype), keys, UPCAST)


@triton.jit(do_not_specialize=["length", "choices", "width"])
def query_gradients_kernel(
    q, k, v, grad, normalisers, deltas, for_q, tiles, starts,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    grad_batch, grad_head, grad_token, for_q_batch, for_q_head, for_q_token,
    length, choices, width, heads, groups, scale, scale_base_2,
    D: tl.constexpr, S: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """dQ: one program per tile of queries and (batch, head); the arguments are those of ``attend_kernel``."""
    tile = tiles + tl.program_id(0) * 4
    first, end, chunk, choice = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    head = tl.program_id(1)
    batch, head = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    group = head // (heads // groups)

    queries_at = first + tl.arange(0, BLOCK_M)
    inside = queries_at < end
    queries = load_rows(q + batch * q_batch + head * q_head, queries_at, inside, q_token, D, BLOCK_D)
    grads = load_rows(
        grad + batch * grad_batch + head * grad_head, queries_at, inside, grad_token, D, BLOCK_D
    )
    row = (batch * heads + head) * length
    normaliser = tl.load(normalisers + row + queries_at, mask=inside, other=float("inf"))
    delta = tl.load(deltas + row + queries_at, mask=inside, other=0.0)
    k += batch * k_batch + group * k_head
    v += batch * v_batch + group * v_head
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    offsets = tl.arange(0, BLOCK_N)

    starts += ((batch * groups + group) * choices + choice) * width
    span = count_filled(starts, width, BLOCK_WIDTH) * S
    for column in range(0, span, BLOCK_N):
        columns = column + offsets
        present = columns < span
        tokens = span_tokens(starts, columns, span, S)
        keys = load_rows(k, tokens, present, k_token, D, BLOCK_D)
        values = load_rows(v, tokens, present, v_token, D, BLOCK_D)
        total = _add_to_queries(
            queries, grads, normaliser, delta, keys, values, present[None, :], total, scale_base_2, UPCAST
        )

    diagonal = chunk + (first - chunk) // BLOCK_N * BLOCK_N
    everything = tl.full([1, BLOCK_N], True, tl.int1)
    for token in range(chunk, diagonal, BLOCK_N):
        tokens = token + offsets
        present = tokens < end
        keys = load_rows(k, tokens, present, k_token, D, BLOCK_D)
        values = load_rows(v, tokens, present, v_token, D, BLOCK_D)
        total = _add_to_queries(
            queries, grads, normaliser, delta, keys, values, everything, total, scale_base_2, UPCAST
        )
    for token in range(diagonal, end, BLOCK_N):
        tokens = token + offsets
        present = tokens < end
        keys = load_rows(k, tokens, present, k_token, D, BLOCK_D)
        values = load_rows(v, tokens, present, v_token, D, BLOCK_D)
        seen = queries_at[:, None] >= tokens[None, :]
        total = _add_to_queries(
            queries, grads, normaliser, delta, keys, values, seen, total, scale_base_2, UPCAST
        )

    for_q += batch * for_q_batch + head * for_q_head
    store_rows(for_q, total * scale, queries_at, inside, for_q_token, D, BLOCK_D)


@triton.jit
def _add_to_keys(
    keys, values, for_keys, for_values, q, grad, normalisers, deltas, queries_at, inside, visible,
    q_token, grad_token, scale, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Adds what one tile of one head's queries gives to dK / scale and dV: float32 [N, BLOCK_D] each.

    ``visible`` [N or 1, M]: which query sees which key.
    """
    queries = load_rows(q, queries_at, inside, q_token, D, BLOCK_D)
    grads = load_rows(grad, queries_at, inside, grad_token, D, BLOCK_D)
    # An infinite normaliser: rows that are not there weigh nothing.
    normaliser = tl.load(normalisers + queries_at, mask=inside, other=float("inf"))
    delta = tl.load(deltas + queries_at, mask=inside, other=0.0)
    logits = product(keys, tl.trans(queries), UPCAST) * scale
    weights = tl.where(visible, tl.exp2(logits - normaliser[None, :]), 0.0)
    for_values += product(weights.to(grads.dtype), grads, UPCAST)
    slopes = weights * (product(values, tl.trans(grads), UPCAST) - delta[None, :])
    for_keys += product(slopes.to(queries.dtype), queries, UPCAST)
    return for_keys, for_values


@triton.jit(do_not_specialize=["length", "block_count", "pairs"])
def span_gradients_kernel(
    q, k, v, grad, normalisers, deltas, for_k, for_v, tiles, retrievers, bounds, choice_tiles,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    grad_batch, grad_head, grad_token, for_batch, for_head, for_token,
    length, block_count, pairs, heads, groups, scale, scale_base_2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """What retrieval adds to dK and dV: one program per tile of a memory block and (batch, key/value head).

    Writes every token once, zeros where nothing was retrieved. tiles: int32 [programs, 3] of
    ``tables.block_tiles``; retrievers: int32 [B * G, pairs], choices sorted by the block that they retrieve,
    then by themselves; bounds: int32 [B * G, U + 1], where each block's retrievers lie among them;
    choice_tiles: int32 [choices, 2], first query and end.
    """
    tile = tiles + tl.program_id(0) * 3
    first, end, block = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    row = tl.program_id(1)
    batch, group = (row // groups).to(tl.int64), (row % groups).to(tl.int64)
    bounds += row * (block_count + 1) + block
    retrievers += row.to(tl.int64) * pairs
    first_retriever, last_retriever = tl.load(bounds), tl.load(bounds + 1)

    keys_at = first + tl.arange(0, BLOCK_N)
    present = keys_at < end
    keys = load_rows(k + batch * k_batch + group * k_head, keys_at, present, k_token, D, BLOCK_D)
    values = load_rows(v + batch * v_batch + group * v_head, keys_at, present, v_token, D, BLOCK_D)
    for_keys = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for_values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    everything = tl.full([1, BLOCK_M], True, tl.int1)
    for retriever in range(first_retriever, last_retriever):
        choice = tl.load(retrievers + retriever)
        start, stop = tl.load(choice_tiles + choice * 2), tl.load(choice_tiles + choice * 2 + 1)
        for head in range(group * (heads // groups), (group + 1) * (heads // groups)):
            sums = (batch * heads + head) * length
            for token in range(start, stop, BLOCK_M):
                queries_at = token + tl.arange(0, BLOCK_M)
                for_keys, for_values = _add_to_keys(
                    keys, values, for_keys, for_values,
                    q + batch * q_batch + head * q_head, grad + batch * grad_batch + head * grad_head,
                    normalisers + sums, deltas + sums, queries_at, queries_at < stop, everything,
                    q_token, grad_token, scale_base_2, D, BLOCK_D, UPCAST,
                )  # fmt: skip
    place = batch * for_batch + group * for_head
    store_rows(for_k + place, for_keys * scale, keys_at, present, for_token, D, BLOCK_D)
    store_rows(for_v + place, for_values, keys_at, present, for_token, D, BLOCK_D)


@triton.jit(do_not_specialize=["length"])
def chunk_gradients_kernel(
    q, k, v, grad, normalisers, deltas, for_k, for_v, tiles,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    grad_batch, grad_head, grad_token, for_batch, for_head, for_token,
    length, heads, groups, scale, scale_base_2,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    RETRIEVED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What a chunk's own queries give to its keys, added to ``span_gradients_kernel``'s if ``RETRIEVED``.

    One program per tile of keys and (batch, key/value head). tiles: int32 [programs, 3] of
    ``tables.key_tiles``.
    """
    tile = tiles + tl.program_id(0) * 3
    first, end, chunk_end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    row = tl.program_id(1)
    batch, group = (row // groups).to(tl.int64), (row % groups).to(tl.int64)

    keys_at = first + tl.arange(0, BLOCK_N)
    present = keys_at < end
    keys = load_rows(k + batch * k_batch + group * k_head, keys_at, present, k_token, D, BLOCK_D)
    values = load_rows(v + batch * v_batch + group * v_head, keys_at, present, v_token, D, BLOCK_D)
    for_keys = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for_values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    everything = tl.full([1, BLOCK_M], True, tl.int1)
    # Query tiles from here on lie wholly after the keys and need no causal mask.
    after = first + (end - first + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    for head in range(group * (heads // groups), (group + 1) * (heads // groups)):
        sums = (batch * heads + head) * length
        q_of_head = q + batch * q_batch + head * q_head
        grad_of_head = grad + batch * grad_batch + head * grad_head
        for token in range(first, tl.minimum(after, chunk_end), BLOCK_M):
            queries_at = token + tl.arange(0, BLOCK_M)
            for_keys, for_values = _add_to_keys(
                keys, values, for_keys, for_values, q_of_head, grad_of_head,
                normalisers + sums, deltas + sums, queries_at, queries_at < chunk_end,
                queries_at[None, :] >= keys_at[:, None],
                q_token, grad_token, scale_base_2, D, BLOCK_D, UPCAST,
            )  # fmt: skip
        for token in range(after, chunk_end, BLOCK_M):
            queries_at = token + tl.arange(0, BLOCK_M)
            for_keys, for_values = _add_to_keys(
                keys, values, for_keys, for_values, q_of_head, grad_of_head,
                normalisers + sums, deltas + sums, queries_at, queries_at < chunk_end, everything,
                q_token, grad_token, scale_base_2, D, BLOCK_D, UPCAST,
            )  # fmt: skip
    for_keys *= scale
    place = batch * for_batch + group * for_head
    if RETRIEVED:
        for_keys += load_rows(for_k + place, keys_at, present, for_token, D, BLOCK_D).to(tl.float32)
        for_values += load_rows(for_v + place, keys_at, present, for_token, D, BLOCK_D).to(tl.float32)
    store_rows(for_k + place, for_keys, keys_at, present, for_token, D, BLOCK_D)
    store_rows(for_v + place, for_values, keys_at, present, for_token, D, BLOCK_D)
