"""Starts the kernels: allocates their results, and lays out their arguments."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from se_model.span.kernels import backward, forward, selection, tables
from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.triton_package import is_interpreting

_LOG2_E = 1.4426950408889634
# Rows that a program sums at a time; it is bound by memory, not by arithmetic.
_SUMMED_AT_ONCE = 64
# What the selection kernels may hold in a GPU's shared memory: blocks kept, bytes of one block's rows.
_MOST_KEPT = 64
_MOST_BLOCK_BYTES = 64 * 1024


def can_choose(q: Tensor, block_size: int, width: int) -> bool:
    """Whether the selection kernels serve queries q [B, H, L, D] that each choose ``width`` blocks."""
    block_bytes = tables.tile_of(block_size) * _block_d(q) * q.element_size()
    return width <= _MOST_KEPT and block_bytes <= _MOST_BLOCK_BYTES


def attend(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, layout: Layout, options: SpanOptions, *, upcast: bool
) -> tuple[Tensor, Tensor]:
    """Output [B, H, L, D] in q's dtype and layout, and the normalisers, float32 [B, H, L], base 2."""
    out = torch.empty_like(q)
    normalisers = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    block_d, tile = _block_d(q), _tiling(q).forward
    size = tables.tile_of(layout.refresh, tile.queries)
    tiles = tables.query_tiles(layout, size, q.device)
    forward.attend_kernel[(len(tiles), q.shape[0] * q.shape[1])](
        q, k, v, out, normalisers, tiles, _first_tokens(blocks, layout),
        *_strides(q, k, v, out), q.shape[2], layout.choices, blocks.shape[3], q.shape[1], k.shape[1],
        _scale_base_2(q, options), q.shape[3], layout.block_size, block_d, size, tile.keys,
        _block_width(blocks), upcast, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, normalisers


def deltas(out: Tensor, grad: Tensor) -> Tensor:
    """Row sums of dO * O, both [B, H, L, D]: float32 [B, H, L]."""
    sums = torch.empty(out.shape[:3], dtype=torch.float32, device=out.device)
    size = tables.tile_of(out.shape[2], _SUMMED_AT_ONCE)
    backward.delta_kernel[(triton.cdiv(out.shape[2], size), out.shape[0] * out.shape[1])](
        out, grad, sums, *_strides(out, grad), out.shape[2], out.shape[1], out.shape[3], _block_d(out), size
    )
    return sums


def query_gradients(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, normalisers: Tensor, delta: Tensor, blocks: Tensor,
    layout: Layout, options: SpanOptions, *, upcast: bool,
) -> Tensor:  # fmt: skip
    """dQ [B, H, L, D]."""
    for_q = torch.empty_like(q)
    block_d, tile = _block_d(q), _tiling(q).for_queries
    size = tables.tile_of(layout.refresh, tile.queries)
    tiles = tables.query_tiles(layout, size, q.device)
    backward.query_gradients_kernel[(len(tiles), q.shape[0] * q.shape[1])](
        q, k, v, grad, normalisers, delta, for_q, tiles, _first_tokens(blocks, layout),
        *_strides(q, k, v, grad, for_q), q.shape[2], layout.choices, blocks.shape[3], q.shape[1],
        k.shape[1], options.scale_for(q.shape[3]), _scale_base_2(q, options), q.shape[3], layout.block_size,
        block_d, size, tile.keys, _block_width(blocks), upcast, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return for_q


def key_gradients(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, normalisers: Tensor, delta: Tensor, blocks: Tensor,
    layout: Layout, options: SpanOptions, *, upcast: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dK and dV, [B, G, L, D] each: first from the choices that retrieved a key, then from its own chunk."""
    for_k, for_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    block_d, tile = _block_d(q), _tiling(q).for_keys
    rows = k.shape[0] * k.shape[1]
    given = (q, k, v, grad, normalisers, delta, for_k, for_v)
    strides = _strides(q, k, v, grad, for_k)
    heads = (q.shape[1], k.shape[1], options.scale_for(q.shape[3]), _scale_base_2(q, options))
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


def summarise(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions, *, upcast: bool
) -> Tensor:
    """Summaries, float32 [B, H, U, D], of mean keys [B, G, U, D]; zeros for blocks that nobody can choose."""
    mean_key = options.summary == "mean_key"
    heads = k.shape[1] if mean_key else q.shape[1]
    blocks = tables.retrievable_blocks(layout, q.device)
    shape = (q.shape[0], heads, layout.blocks, q.shape[3])
    # Zeros, not unwritten memory: an infinity or NaN that is read beside a candidate would spoil it.
    summaries = torch.zeros(shape, dtype=torch.float32, device=q.device)
    selection.summarise_kernel[(len(blocks), q.shape[0] * heads)](
        q, k, v, summaries, blocks, *_strides(q, k, v), layout.blocks, heads, k.shape[1],
        _scale_base_2(q, options), q.shape[3], layout.block_size, _block_d(q),
        tables.tile_of(layout.block_size), mean_key, upcast,
        num_warps=8 if _block_d(q) * q.element_size() > 512 else 4,
    )  # fmt: skip
    return summaries


def sum_queries(q: Tensor, layout: Layout) -> Tensor:
    """Sum of the queries of every choice: float32 [B, H, choices, D]."""
    batch, heads, _, width = q.shape
    sums = torch.empty(batch, heads, layout.choices, width, dtype=torch.float32, device=q.device)
    selection.sum_queries_kernel[(layout.choices, batch * heads)](
        q, sums, tables.choice_table(layout, q.device), *_strides(q), layout.choices, heads,
        width, _block_d(q), tables.tile_of(layout.refresh, _SUMMED_AT_ONCE),
    )  # fmt: skip
    return sums


def choose(
    sums: Tensor, summaries: Tensor, layout: Layout, options: SpanOptions, groups: int, width: int
) -> Tensor:
    """The ``width`` most relevant candidates of every choice: int64 [B, G, choices, width].

    sums: float32 [B, H, choices, D]; summaries: float32 [B, H or G, U, D].
    """
    batch, heads, choices, _ = sums.shape
    chosen = torch.empty(batch, groups, choices, width, dtype=torch.int64, device=sums.device)
    block_width, tiling = _block_width(chosen), _tiling(sums)
    selection.choose_kernel[(triton.cdiv(choices, tiling.choices), batch * groups)](
        sums, summaries, tables.candidate_table(layout, sums.device), chosen,
        summaries.shape[2], choices, width, heads // groups, summaries.shape[1] // groups,
        int(options.causal), sums.shape[3], _block_d(sums), tiling.choices, max(tiling.blocks, block_width),
        block_width,
    )  # fmt: skip
    return chosen


def _scale_base_2(q: Tensor, options: SpanOptions) -> float:
    """The scale of logits whose exponential is a power of 2."""
    return options.scale_for(q.shape[3]) * _LOG2_E


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


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _block_d(x: Tensor) -> int:
    return tables.tile_of(x.shape[-1])


def _block_width(blocks: Tensor) -> int:
    return max(2, triton.next_power_of_2(blocks.shape[-1]))


def _tiling(x: Tensor) -> tables.Tiling:
    return tables.choose_tiling(_block_d(x), x.dtype, interpreted=is_interpreting())
