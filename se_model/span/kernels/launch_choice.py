"""Starts the kernels that choose memory blocks: allocates their results, and lays out their arguments."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from se_model.span.kernels import judging, selection, tables
from se_model.span.kernels.arguments import kept_tile, row_tile, scale_base_2, strides_of, tiling_for
from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.rules import OWN_NUMBERS, REPRESENTATIVE_KEYS, SHARES, summary_heads
from se_model.span.triton_package import is_interpreting

# Rows that a program sums at a time; it is bound by memory, not by arithmetic.
_SUMMED_AT_ONCE = 64
# What the kernels may hold in a GPU's shared memory or registers: blocks or queries kept as the best so far,
# and, for the attention over a block that is its summary, bytes of the block's rows.
MOST_KEPT = 64
_MOST_BLOCK_BYTES = 64 * 1024
# Numbers in float64 that a program holds at a time, where each takes two registers.
DOUBLES_AT_ONCE = 4096


def can_choose(q: Tensor, layout: Layout, options: SpanOptions, width: int) -> bool:
    """Whether the kernels serve queries q [B, H, L, D] whose choices take ``width`` blocks each.

    They do for all summaries, relevancies and samples of queries, but for more blocks or representatives than
    a program keeps, and blocks too large to be summarised by their attention.
    """
    block_bytes = tables.tile_of(layout.block_size) * row_tile(q) * q.element_size()
    fits = options.summary != "attention" or block_bytes <= _MOST_BLOCK_BYTES
    number = options.queries.number if _ranks_queries(layout, options) else 0
    return fits and max(width, number) <= MOST_KEPT


def summarise(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions, *, upcast: bool
) -> Tensor:
    """Summaries as ``selection.summaries.summarise``, of all blocks of the row: [B, heads, U, D].

    In float32; but keys' own numbers, where single queries are compared with them, in the keys' dtype, unless
    ``upcast``. Zeros for blocks that nobody can choose.
    """
    programs = q.shape[1] if options.summary == "attention" else k.shape[1]
    blocks = tables.retrievable_blocks(layout, q.device)
    vectors = summary_heads(options.summary, q.shape[1], k.shape[1], layout.block_size)
    # Zeros, not unwritten memory: an infinity or NaN that is read beside a candidate would spoil it.
    own = options.summary in OWN_NUMBERS and not options.sums and not upcast
    dtype = k.dtype if own else torch.float32
    summaries = torch.zeros(q.shape[0], vectors, layout.blocks, q.shape[3], dtype=dtype, device=q.device)
    if options.summary == "representative_keys":
        _write_representative_keys(k, summaries, blocks, layout.block_size)
        return summaries
    selection.summarise_kernel[(len(blocks), q.shape[0] * programs)](
        q, k, v, summaries, blocks, *strides_of(q, k, v), layout.blocks, programs, k.shape[1],
        scale_base_2(q, options), q.shape[3], layout.block_size, row_tile(q),
        tables.tile_of(layout.block_size), options.summary, upcast,
        num_warps=8 if row_tile(q) * q.element_size() > 512 else 4,
    )  # fmt: skip
    return summaries


def _write_representative_keys(k: Tensor, summaries: Tensor, blocks: Tensor, block_size: int) -> None:
    """Writes the keys that represent the blocks of ``tables.retrievable_blocks``.

    k: [B, G, L, D]; summaries: [B, G * kept, U, D].
    """
    groups, kept = k.shape[1], min(REPRESENTATIVE_KEYS, block_size)
    first, ids = blocks.long().unbind(1)
    tokens = first[:, None] + torch.arange(block_size, device=k.device)
    if kept < block_size:
        ranges = torch.stack([blocks[:, 0], blocks[:, 0] + block_size], dim=1)
        tokens = _farthest(k, ranges, kept, block_size).long()
    tokens = tokens.expand(*k.shape[:2], -1, -1).flatten(2)
    keys = torch.take_along_dim(k, tokens[..., None], dim=2)
    by_place = keys.unflatten(2, (-1, kept)).transpose(2, 3).to(summaries.dtype)
    summaries.unflatten(1, (groups, kept))[:, :, :, ids] = by_place


def _farthest(x: Tensor, ranges: Tensor, kept: int, longest: int) -> Tensor:
    """The ``kept`` tokens of each range that are farthest from its mean: int32 [B, H, ranges, kept].

    x: [B, H, L, D]; ranges: int32 [ranges, 2], first token and end, at most ``longest`` tokens each.
    """
    (batch, heads, _, width), rows = x.shape, len(ranges)
    tokens = torch.empty(batch, heads, rows, kept, dtype=torch.int32, device=x.device)
    size = tables.tile_of(longest, DOUBLES_AT_ONCE // row_tile(x))
    judging.representatives_kernel[(rows, batch * heads)](
        x, tokens, ranges, *strides_of(x), ranges.stride(0), rows, kept, heads,
        width, row_tile(x), size, kept_tile(kept),
    )  # fmt: skip
    return tokens


def sum_queries(q: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    """Sums of choices' queries as ``selection.summaries.sum_queries``: float32 [B, heads, choices, D]."""
    batch, heads, _, width = q.shape
    parts = 2 if options.summary == "key_bounds" else 1
    sums = torch.empty(batch, parts * heads, layout.choices, width, dtype=torch.float32, device=q.device)
    selection.sum_queries_kernel[(layout.choices, batch * heads)](
        q, sums, tables.choice_table(layout, q.device), *strides_of(q), layout.choices, heads, parts == 2,
        width, row_tile(q), tables.tile_of(layout.refresh, _SUMMED_AT_ONCE),
    )  # fmt: skip
    return sums


def choose(
    sums: Tensor, summaries: Tensor, layout: Layout, options: SpanOptions, groups: int, width: int
) -> Tensor:
    """The ``width`` most relevant candidates of every choice, by sums: int64 [B, G, choices, width].

    sums: as ``sum_queries`` returns them; summaries: as ``summarise`` does.
    """
    batch, heads, choices, _ = sums.shape
    chosen = torch.empty(batch, groups, choices, width, dtype=torch.int64, device=sums.device)
    kept, tiling = kept_tile(width), tiling_for(sums)
    selection.choose_kernel[(triton.cdiv(choices, tiling.choices), batch * groups)](
        sums, summaries, tables.candidate_table(layout, sums.device), chosen,
        summaries.shape[2], choices, width, heads // groups, summaries.shape[1] // groups,
        int(options.causal), sums.shape[3], row_tile(sums), tiling.choices, max(tiling.blocks, kept), kept,
    )  # fmt: skip
    return chosen


def find_judges(q: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    """The tokens that judge for every judged choice, ascending, then -1: int32 [choices, R], for all heads.

    Of representatives each head has its own: [B, H, choices, R].
    """
    if not _ranks_queries(layout, options):
        step = options.queries.number if options.queries.kind == "stride" else 1
        return tables.judge_table(layout, int(options.causal), step, q.device)
    judged = tables.judged_choices(layout, int(options.causal), q.device)
    return _farthest(q, judged[:, 1:3], options.queries.number, layout.refresh)


def choose_judged(
    q: Tensor,
    summaries: Tensor,
    tokens: Tensor,
    layout: Layout,
    options: SpanOptions,
    groups: int,
    width: int,
) -> Tensor:
    """As ``choose``, each judging query compared with every candidate.

    q: [B, H, L, D]; summaries: as ``summarise`` returns them; tokens: as ``find_judges`` does.
    """
    batch, heads, judges = *q.shape[:2], tokens.shape[-1]
    judged = tables.judged_choices(layout, int(options.causal), q.device)
    tile = tables.judging_tile(row_tile(q), interpreted=is_interpreting())
    rows = tables.tile_of(judges, tile.queries)
    run = {"num_warps": tile.warps, "num_stages": tile.stages}
    strides = (*strides_of(q), tokens.stride(1) if tokens.ndim == 4 else 0)
    sharing = (heads // groups, options.summary, summaries.shape[1] // groups)
    scale, sizes = scale_base_2(q, options), (q.shape[3], row_tile(q), rows, tile.keys)
    # Read where shares are compared.
    normalisers = summaries
    if options.relevancy in SHARES:
        shape = (batch, heads, len(judged), judges)
        normalisers = torch.empty(shape, dtype=torch.float32, device=q.device)
        judging.normalise_kernel[(len(judged) * triton.cdiv(judges, rows), batch * heads)](
            q, summaries, tokens, judged, normalisers, *strides,
            summaries.shape[2], len(judged), judges, heads, scale, *sharing, *sizes, **run,
        )  # fmt: skip
    shape = (batch, groups, layout.choices, width)
    chosen = torch.full(shape, -1, dtype=torch.int64, device=q.device)
    judging.choose_judged_kernel[(len(judged), batch * groups)](
        q, summaries, tokens, judged, normalisers, chosen, *strides,
        summaries.shape[2], len(judged), layout.choices, judges, width, heads, scale,
        *sharing, options.relevancy, *sizes, kept_tile(width), **run,
    )  # fmt: skip
    return chosen


def _ranks_queries(layout: Layout, options: SpanOptions) -> bool:
    """Whether the judges are to be found: representatives, and fewer than a choice has queries."""
    return options.queries.kind == "representative" and options.queries.number < layout.refresh
