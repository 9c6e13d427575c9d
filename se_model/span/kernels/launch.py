"""Starts the attention kernels: allocates their results, and lays out their arguments."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from se_model.span.kernels import backward, forward, tables
from se_model.span.kernels.arguments import kept_tile, row_tile, scale_base_2, strides_of, tiling_for
from se_model.span.layout import Layout
from se_model.span.options import SpanOptions

# Rows that a program sums at a time; it is bound by memory, not by arithmetic.
_SUMMED_AT_ONCE = 64


def attend(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, layout: Layout, options: SpanOptions, *, upcast: bool
) -> tuple[Tensor, Tensor]:
    """Output [B, H, L, D] in q's dtype and layout, and the normalisers, float32 [B, H, L], base 2."""
    out = torch.empty_like(q)
    normalisers = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    block_d, tile = row_tile(q), tiling_for(q).forward
    size = tables.tile_of(layout.refresh, tile.queries)
    tiles = tables.query_tiles(layout, size, q.device)
    forward.attend_kernel[(len(tiles), q.shape[0] * q.shape[1])](
        q, k, v, out, normalisers, tiles, _first_tokens(blocks, layout),
        *strides_of(q, k, v, out), q.shape[2], layout.choices, blocks.shape[3], q.shape[1], k.shape[1],
        scale_base_2(q, options), q.shape[3], layout.block_size, block_d, size, tile.keys,
        kept_tile(blocks.shape[3]), upcast, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, normalisers


def deltas(out: Tensor, grad: Tensor) -> Tensor:
    """Row sums of dO * O, both [B, H, L, D]: float32 [B, H, L]."""
    sums = torch.empty(out.shape[:3], dtype=torch.float32, device=out.device)
    size = tables.tile_of(out.shape[2], _SUMMED_AT_ONCE)
    backward.delta_kernel[(triton.cdiv(out.shape[2], size), out.shape[0] * out.shape[1])](
        out, grad, sums, *strides_of(out, grad), out.shape[2], out.shape[1], out.shape[3], row_tile(out), size
    )
    return sums


def query_gradients(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, normalisers: Tensor, delta: Tensor, blocks: Tensor,
    layout: Layout, options: SpanOptions, *, upcast: bool,
) -> Tensor:  # fmt: skip
    """dQ [B, H, L, D]."""
    for_q = torch.empty_like(q)
    block_d, tile = row_tile(q), tiling_for(q).for_queries
    size = tables.tile_of(layout.refresh, tile.queries)
    tiles = tables.query_tiles(layout, size, q.device)
    backward.query_gradients_kernel[(len(tiles), q.shape[0] * q.shape[1])](
        q, k, v, grad, normalisers, delta, for_q, tiles, _first_tokens(blocks, layout),
        *strides_of(q, k, v, grad, for_q), q.shape[2], layout.choices, blocks.shape[3], q.shape[1],
        k.shape[1], options.scale_for(q.shape[3]), scale_base_2(q, options), q.shape[3], layout.block_size,
        block_d, size, tile.keys, kept_tile(blocks.shape[3]), upcast,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return for_q


def key_gradients(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, normalisers: Tensor, delta: Tensor, blocks: Tensor,
    layout: Layout, options: SpanOptions, *, upcast: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dK and dV, [B, G, L, D] each: first from the choices that retrieved a key, then from its own chunk."""
    for_k, for_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    block_d, tile = row_tile(q), tiling_for(q).for_keys
    rows = k.shape[0] * k.shape[1]
    given = (q, k, v, grad, normalisers, delta, for_k, for_v)
    strides = strides_of(q, k, v, grad, for_k)
    heads = (q.shape[1], k.shape[1], options.scale_for(q.shape[3]), scale_base_2(q, options))
    run = {"num_warps": tile.warps, "num_stages": tile.stages}
    retrieved = blocks.shape[3] > 0
    if retrieved:
        retrievers, bounds = _invert(blocks, layout.blocks)
        queries = tables.tile_of(layout.refresh, tile.queries)
        keys = tables.tile_of(layout.block_size, tile.keys)
        tiles = tables.block_tiles(layout, keys, q.device)
        backward.span_gradients_kernel[(len(tiles), rows)](
            *given, tiles, retrievers, bounds,
            tables.choice_table(layout, q.device), *strides, q.shape[2], layout.blocks,
            retrievers.shape[1], *heads, q.shape[3], block_d, queries, keys, upcast, **run,
        )  # fmt: skip
    size = tables.tile_of(layout.chunk_size, tile.keys)
    tiles = tables.key_tiles(layout, size, q.device)
    backward.chunk_gradients_kernel[(len(tiles), rows)](
        *given, tiles, *strides, q.shape[2], *heads, q.shape[3], block_d,
        tables.tile_of(layout.chunk_size, tile.queries), size, retrieved, upcast, **run,
    )  # fmt: skip
    return for_k, for_v


def _first_tokens(blocks: Tensor, layout: Layout) -> Tensor:
    """First tokens of chosen blocks, -1 for none: int32, as ``blocks``."""
    first = tables.block_table(layout, blocks.device)[:, 0]
    return first[blocks.clamp(min=0)].masked_fill_(blocks < 0, -1).contiguous()


def _invert(blocks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which choices retrieve each block, and where they lie: int32 [B * G, pairs] and [B * G, count + 1].

    blocks: int64 [B, G, choices, K]. A stable sort keeps the choices of a block in order, so that sums over
    them are the same in every run. Empty slots come last, beyond all bounds.
    """
    flat = blocks.masked_fill(blocks < 0, count).flatten(0, 1).flatten(1)
    ordered, origin = flat.sort(dim=1, stable=True)
    ids = torch.arange(count + 1, device=blocks.device).expand(len(flat), -1).contiguous()
    bounds = torch.searchsorted(ordered, ids, out_int32=True)
    return (origin // blocks.shape[3]).to(torch.int32), bounds
