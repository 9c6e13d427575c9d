"""How relevant each block is to a choice: comparisons of its queries with the summaries, made one number."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from se_model.span.options import SpanOptions
from se_model.span.rules import LARGEST, SHARES
from se_model.span.selection.judges import Judges

SCORES_AT_ONCE = 2**24
"""Comparisons held at a time: bounds the memory that choosing takes, whatever the row's length."""


def relevance(sums: Tensor, summaries: Tensor, groups: int) -> Tensor:
    """R_ij, summed over the query heads of each key/value head.

    sums: as `sum_queries` returns them; summaries: as `summarise` does -> [B, G, choices, U].
    """
    if summaries.shape[1] != sums.shape[1]:
        sums = share_sums(sums, summaries.shape[1], groups)
    summaries = summaries.to(sums.dtype)
    return (sums @ summaries.transpose(-1, -2)).unflatten(1, (groups, -1)).sum(2)


def share_sums(sums: Tensor, heads: int, groups: int) -> Tensor:
    """Sums of queries of the heads that are compared with the same summary, added up.

    sums: [B, n H, choices, D] with n = heads / groups -> [B, heads, choices, D].
    """
    return sums.unflatten(1, (groups, -1, heads // groups)).sum(2).flatten(1, 2)


def judged_relevance(
    judges: Judges, summaries: Tensor, candidates: list[int], options: SpanOptions, groups: int
) -> Tensor:
    """The relevancy of blocks where each judging query is compared with each of them.

    "sum" adds the comparisons up, "max" takes the largest. "mass" and "peak" do so with each query's shares
    of 1 among the candidates, by a softmax of the scaled logits. Query heads of a group are added up.

    judges: of C choices; summaries: as `summarise` returns them; candidates: how many blocks each choice may
    take, the first ones -> [B, G, C, U], of anything where a block is no candidate.
    """
    queries, device = judges.queries, summaries.device
    batch, heads, choices, most, _ = queries.shape
    blocks = summaries.shape[2]
    closed = torch.arange(blocks, device=device) >= torch.tensor(candidates, device=device)[:, None]
    idle = torch.arange(most, device=device) >= torch.tensor(judges.counts, device=device)[:, None]
    at_once = max(1, SCORES_AT_ONCE // (batch * heads * choices * blocks))
    total: Tensor | None = None
    for first in range(0, most, at_once):
        part = slice(first, first + at_once)
        scores = _compare(queries[:, :, :, part], summaries, groups, options.summary)
        silent = idle[:, part, None]
        if options.relevancy in SHARES:
            scale = options.scale_for(queries.shape[4])
            scores = scores.mul_(scale).masked_fill_(closed[:, None], -torch.inf).softmax(-1)
        if options.relevancy in LARGEST:
            found = scores.masked_fill_(silent, -torch.inf).amax(4)
            total = found if total is None else torch.maximum(total, found)
        else:
            found = scores.masked_fill_(silent, 0.0).sum(4)
            total = found if total is None else total + found
    assert total is not None, "a choice has at least one query"
    return total.sum(2)


def _compare(queries: Tensor, summaries: Tensor, groups: int, summary: str) -> Tensor:
    """Each query's score with each block. queries: [B, H, C, R, D] -> [B, G, H / G, C, R, U]."""
    batch, heads, choices, judging, width = queries.shape
    dtype = torch.promote_types(queries.dtype, torch.float32)
    rows = queries.to(dtype).reshape(batch, groups, heads // groups, choices * judging, width)
    columns = summaries.to(dtype).unflatten(1, (groups, -1)).transpose(-1, -2)
    if summary == "key_bounds":
        high, low = columns.split(1, dim=2)
        scores = rows.clamp(min=0) @ high + rows.clamp(max=0) @ low
    elif summary == "representative_keys":
        scores = reduce(torch.maximum, (rows @ keys for keys in columns.split(1, dim=2)))
    else:
        scores = rows @ columns
    return scores.unflatten(3, (choices, judging))
