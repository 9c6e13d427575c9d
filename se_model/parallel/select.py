"""Choosing memory blocks that lie on any rank: summaries are gathered, each rank chooses for its queries."""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.parallel.group import ContextParallelGroup
from se_model.parallel.span_plan import RankPlan
from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.selection import rank_blocks, relevance, sum_queries, summarise


@torch.no_grad()
def choose_in_parallel(
    q: Tensor, block_head: Tensor, k: Tensor, v: Tensor, group: ContextParallelGroup, layout: Layout,
    plans: tuple[RankPlan, ...], options: SpanOptions,
) -> Tensor:  # fmt: skip
    """The blocks that each choice of the rank's own layout retrieves: ids over the whole row.

    q: [B, H, head + n, D], zeros in the head; block_head: [B, H, block_head, D], the queries that stand there
    in the shard's first block; k, v: [B, G, head + n, D]. Returns int64 [B, G, own choices, K], -1 for none.
    """
    plan = plans[group.rank]
    width = min(options.top_k, layout.most_candidates)
    chosen = torch.full((*k.shape[:2], plan.own.choices, width), -1, dtype=torch.int64, device=k.device)
    if width == 0:
        return chosen
    with torch.autocast(q.device.type, enabled=False):
        sums = _own_sums(q, plan)
        summaries = _own_summaries(q, block_head, k, v, plan, options)
        if summaries.shape[1] != sums.shape[1]:
            sums = sums.unflatten(1, (summaries.shape[1], -1)).sum(2)
        all_summaries, all_sums = _gather(summaries, sums, group, plans, layout)
        if options.causal:
            all_sums = all_sums.roll(1, dims=2)  # what a document's first choice gets so is never looked at
        ids = _choose(all_sums, all_summaries, k.shape[1], layout, plan, width)
    ids = agree_on_shared(ids, group, plans)
    first = plan.choices.start - plan.first_choice
    chosen[:, :, first : first + len(plan.choices)] = ids
    return chosen


def _own_sums(q: Tensor, plan: RankPlan) -> Tensor:
    """What the shard's queries add to the sum of each of its choices: [B, H, choices, D]."""
    parts = [
        sum_queries(q[:, :, document.start : document.end], plan.own.refresh)
        for document in plan.own.documents
    ]
    return torch.cat(parts, dim=2)[:, :, plan.choices.start - plan.first_choice :]


def _own_summaries(
    q: Tensor, block_head: Tensor, k: Tensor, v: Tensor, plan: RankPlan, options: SpanOptions
) -> Tensor:
    """Summaries of the blocks that the rank owns, zeros for partial ones: [B, H or G, blocks, D]."""
    size = options.block_size
    heads = k.shape[1] if options.summary == "mean_key" else q.shape[1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    summaries = torch.zeros(q.shape[0], heads, len(plan.blocks), q.shape[3], dtype=dtype, device=q.device)
    for document in plan.own.documents:
        first = max(document.first_block, plan.first_own_block)
        last = document.first_block + document.length // size
        if first >= last:
            continue
        start = document.start + (first - document.first_block) * size
        tokens = slice(start, document.start + (last - document.first_block) * size)
        queries = q[:, :, tokens]
        if start < plan.head:
            queries = torch.cat([block_head, q[:, :, plan.head : tokens.stop]], dim=2)
        place = slice(first - plan.first_own_block, last - plan.first_own_block)
        summaries[:, :, place] = summarise(queries, k[:, :, tokens], v[:, :, tokens], options)
    return summaries


def _gather(
    summaries: Tensor, sums: Tensor, group: ContextParallelGroup, plans: tuple[RankPlan, ...], layout: Layout
) -> tuple[Tensor, Tensor]:
    """All ranks' summaries [B, heads, U, D] and sums of queries [B, heads, choices, D], by one all-gather."""
    most_blocks = max(len(plan.blocks) for plan in plans)
    most_choices = max(len(plan.choices) for plan in plans)
    padded = [
        torch.nn.functional.pad(x, (0, 0, 0, most - x.shape[2]))
        for x, most in ((summaries, most_blocks), (sums, most_choices))
    ]
    gathered = group.all_gather(torch.cat(padded, dim=2), purpose="summaries")
    all_summaries = torch.cat(
        [part[:, :, : len(plan.blocks)] for part, plan in zip(gathered, plans, strict=True)], dim=2
    )
    all_sums = sums.new_zeros(*sums.shape[:2], layout.choices, sums.shape[3])
    for part, plan in zip(gathered, plans, strict=True):
        own = part[:, :, most_blocks : most_blocks + len(plan.choices)]
        all_sums[:, :, plan.choices.start : plan.choices.stop] += own
    return all_summaries, all_sums


def _choose(
    sums: Tensor, summaries: Tensor, groups: int, layout: Layout, plan: RankPlan, width: int
) -> Tensor:
    """The shard's choices, [B, G, choices, width], as ids over the whole row."""
    chosen = []
    for document in layout.documents:
        own = range(
            max(plan.choices.start, document.first_choice),
            min(plan.choices.stop, document.first_choice + layout.choices_of(document)),
        )
        if not own:
            continue
        candidates = max(1, layout.candidates(own[-1] - document.first_choice))
        relevancy = relevance(
            sums[:, :, own.start : own.stop],
            summaries[:, :, document.first_block : document.first_block + candidates],
            groups,
        )
        chosen.append(rank_blocks(relevancy, document, layout, width, own.start - document.first_choice))
    return torch.cat(chosen, dim=2)


def agree_on_shared(ids: Tensor, group: ContextParallelGroup, plans: tuple[RankPlan, ...]) -> Tensor:
    """Takes a choice that two ranks share from the one that holds its first query.

    Both would choose alike but for rounding, since products of other sizes may add in another order.
    """
    if not any(plan.shares_first for plan in plans):
        return ids
    last = ids[:, :, -1].contiguous()
    received = group.shift_right(last, tuple(last.shape), purpose="shared choices")
    if received is not None and plans[group.rank].shares_first:
        ids[:, :, 0] = received
    return ids
