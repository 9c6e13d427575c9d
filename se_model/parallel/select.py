"""Choosing memory blocks that lie on any rank: summaries are gathered, each rank chooses for its queries.

Queries that are summed travel as sums, from all to all. Others must stand together where they judge, on the
rank that holds the first query of the choice; `judges.py` brings it what a neighbour holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.parallel.group import ContextParallelGroup
from se_model.parallel.judges import decided_choices, with_judges
from se_model.parallel.span_plan import RankPlan
from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.rules import summary_heads
from se_model.span.selection.choose import judge
from se_model.span.selection.ranking import rank_blocks
from se_model.span.selection.relevancy import relevance, share_sums
from se_model.span.selection.summaries import sum_queries, summarise, summary_dtype


@torch.no_grad()
def choose_in_parallel(
    q: Tensor, block_head: Tensor, k: Tensor, v: Tensor, group: ContextParallelGroup, layout: Layout,
    plans: tuple[RankPlan, ...], options: SpanOptions,
) -> Tensor:  # fmt: skip
    """The blocks that each choice of the rank's own layout retrieves: ids over the whole row.

    q: [B, H, head + n, D], zeros in the head; k: [B, G, head + n, D]; v: [B, G, head + n, Dv] and block_head,
    [B, H, block_head, D], the queries that stand there in the shard's first block, are needed by the summary
    "attention" alone. Returns int64 [B, G, own choices, K], -1 for none.
    """
    plan = plans[group.rank]
    width = min(options.top_k, layout.most_candidates)
    chosen = torch.full((*k.shape[:2], plan.own.choices, width), -1, dtype=torch.int64, device=k.device)
    if width == 0:
        return chosen
    with torch.autocast(q.device.type, enabled=False):
        summaries = _own_summaries(q, block_head, k, v, plan, options)
        if options.sums:
            ids = _choose_by_sums(q, summaries, k.shape[1], group, layout, plans, options, width)
        else:
            summaries = _side_by_side(summaries, [len(each.blocks) for each in plans], group)
            ids = _choose_by_judges(q, summaries, k.shape[1], group, layout, plans, options, width)
    ids = agree_on_shared(ids, group, plans)
    first = plan.choices.start - plan.first_choice
    chosen[:, :, first : first + len(plan.choices)] = ids
    return chosen


def _choose_by_sums(
    q: Tensor, summaries: Tensor, groups: int, group: ContextParallelGroup, layout: Layout,
    plans: tuple[RankPlan, ...], options: SpanOptions, width: int,
) -> Tensor:  # fmt: skip
    """The shard's choices where queries are summed: a choice on two ranks adds up what both have of it."""
    plan = plans[group.rank]
    sums = _own_sums(q, plan, options)
    if summaries.shape[1] != sums.shape[1]:
        sums = share_sums(sums, summaries.shape[1], groups)
    blocks, choices = [len(each.blocks) for each in plans], [len(each.choices) for each in plans]
    if summaries.dtype == sums.dtype:
        joined = torch.cat([_padded(summaries, max(blocks)), _padded(sums, max(choices))], dim=2)
        gathered = group.all_gather(joined, purpose="summaries")
        summaries = _unpadded(gathered[:, :, :, : max(blocks)], blocks)
        parts = gathered[:, :, :, max(blocks) :]
    else:
        summaries = _side_by_side(summaries, blocks, group)
        parts = group.all_gather(_padded(sums, max(choices)), purpose="summaries")
    all_sums = sums.new_zeros(*sums.shape[:2], layout.choices, sums.shape[3])
    for part, each in zip(parts, plans, strict=True):
        all_sums[:, :, each.choices.start : each.choices.stop] += part[:, :, : len(each.choices)]
    if options.causal:
        all_sums = all_sums.roll(1, dims=2)  # what a document's first choice gets so is never looked at
    return _choose(all_sums, summaries, groups, layout, plan, width)


def _choose_by_judges(
    q: Tensor, summaries: Tensor, groups: int, group: ContextParallelGroup, layout: Layout,
    plans: tuple[RankPlan, ...], options: SpanOptions, width: int,
) -> Tensor:  # fmt: skip
    """The choices begun in the shard, judged by their queries, of which a neighbour may hold some.

    summaries: of the whole row. A choice begun by the left neighbour is -1 here.
    """
    plan = plans[group.rank]
    queries, first_token = with_judges(q[:, :, plan.head :], group, layout, plans, causal=options.causal)
    shape = (q.shape[0], groups, len(plan.choices), width)
    chosen = torch.full(shape, -1, dtype=torch.int64, device=q.device)
    decided = decided_choices(plan)
    for document in layout.documents:
        judged = [
            choice
            for choice in range(layout.choices_of(document))
            if document.first_choice + choice in decided and layout.candidates(choice)
        ]
        if not judged:
            continue
        choices = range(judged[0], judged[-1] + 1)
        start = document.start + (choices.start - int(options.causal)) * layout.refresh - first_token
        blocks = slice(document.first_block, document.first_block + layout.candidates(judged[-1]))
        ids = judge(
            queries[:, :, start : document.end - first_token], summaries[:, :, blocks], choices, document,
            layout, options, groups, width,
        )  # fmt: skip
        place = document.first_choice + choices.start - plan.choices.start
        chosen[:, :, place : place + len(choices)] = ids
    return chosen


def _own_sums(q: Tensor, plan: RankPlan, options: SpanOptions) -> Tensor:
    """What the shard's queries add to the sum of each of its choices: [B, H or 2 H, choices, D]."""
    parts = [
        sum_queries(q[:, :, document.start : document.end], plan.own.refresh, options)
        for document in plan.own.documents
    ]
    return torch.cat(parts, dim=2)[:, :, plan.choices.start - plan.first_choice :]


def _own_summaries(
    q: Tensor, block_head: Tensor, k: Tensor, v: Tensor, plan: RankPlan, options: SpanOptions
) -> Tensor:
    """Summaries of the blocks that the rank owns, zeros for partial ones: [B, heads, blocks, D]."""
    size = options.block_size
    heads = summary_heads(options.summary, q.shape[1], k.shape[1], size)
    dtype = summary_dtype(options.summary, k.dtype)
    summaries = torch.zeros(q.shape[0], heads, len(plan.blocks), q.shape[3], dtype=dtype, device=q.device)
    for document in plan.own.documents:
        first = max(document.first_block, plan.first_own_block)
        last = document.first_block + document.length // size
        if first >= last:
            continue
        start = document.start + (first - document.first_block) * size
        tokens = slice(start, document.start + (last - document.first_block) * size)
        queries = q[:, :, tokens]
        if start < plan.head and options.summary == "attention":
            queries = torch.cat([block_head, q[:, :, plan.head : tokens.stop]], dim=2)
        place = slice(first - plan.first_own_block, last - plan.first_own_block)
        summaries[:, :, place] = summarise(queries, k[:, :, tokens], v[:, :, tokens], options)
    return summaries


def _side_by_side(own: Tensor, counts: list[int], group: ContextParallelGroup) -> Tensor:
    """All ranks' summaries, [B, heads, U, D]; own: [B, heads, counts[rank], D]."""
    return _unpadded(group.all_gather(_padded(own, max(counts)), purpose="summaries"), counts)


def _padded(x: Tensor, most: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, most - x.shape[2]))


def _unpadded(gathered: Tensor, counts: list[int]) -> Tensor:
    return torch.cat([part[:, :, :count] for part, count in zip(gathered, counts, strict=True)], dim=2)


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
