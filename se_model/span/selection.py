"""Which past memory blocks each chunk retrieves (paper, section 3.3).

The relevancy R_ij = sum_t <Q_i[t], c_j> is linear in the queries, so the chunk's queries are summed first:
O(dLS + dL^2 / (MS)) instead of the paper's O(dL^2 / S). The softmax over it is monotone and left out.
Nothing here carries a gradient: the choice is discrete.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from se_model.span.layout import Document, Layout
from se_model.span.options import SpanOptions

# Tokens summarised at a time, and relevancies ranked at a time: bounds the memory of working in float32 on
# half-precision inputs.
_TOKENS_AT_ONCE = 16_384
_SCORES_AT_ONCE = 2**24


@torch.no_grad()
def choose_blocks(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    """The ids of the blocks that each choice retrieves, ascending, then -1 where there is none.

    q: [B, H, L, D]; k, v: [B, G, L, D] -> int64 [B, G, choices, min(top_k, most_candidates)].
    """
    with torch.autocast(q.device.type, enabled=False):
        return _choose(q, k, v, layout, options)


def _choose(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    width = min(options.top_k, layout.most_candidates)
    chosen = torch.full((*k.shape[:2], layout.choices, width), -1, dtype=torch.int64, device=k.device)
    for document in layout.documents:
        choices = layout.choices_of(document)
        candidates = layout.candidates(choices - 1)
        if candidates == 0 or width == 0:
            continue
        tokens = slice(document.start, document.start + candidates * layout.block_size)
        summaries = summarise(q[:, :, tokens], k[:, :, tokens], v[:, :, tokens], options)
        sums = sum_queries(q[:, :, document.start : document.end], layout.refresh)
        if options.causal:
            sums = torch.cat([torch.zeros_like(sums[:, :, :1]), sums[:, :, :-1]], dim=2)
        rows = max(1, _SCORES_AT_ONCE // (k.shape[0] * k.shape[1] * candidates))
        for first in range(0, choices, rows):
            last = min(first + rows, choices)
            relevancy = relevance(sums[:, :, first:last], summaries, k.shape[1])
            ids = rank_blocks(relevancy, document, layout, width, first)
            chosen[:, :, document.first_choice + first : document.first_choice + last] = ids
    return chosen


def summarise(q: Tensor, k: Tensor, v: Tensor, options: SpanOptions) -> Tensor:
    """The summary c_j of every block, in float32 or wider.

    q: [B, H, U * S, D]; k, v: [B, G, U * S, D] -> [B, H, U, D] for "attention" (one for each query head),
    [B, G, U, D] for "mean_key".
    """
    dtype, block_size = torch.promote_types(q.dtype, torch.float32), options.block_size
    if options.summary == "mean_key":
        return k.unflatten(2, (-1, block_size)).mean(3, dtype=dtype)
    tokens = max(block_size, _TOKENS_AT_ONCE // block_size * block_size)
    scale = options.scale_for(q.shape[3])
    # On a CPU head by head: in [B, L, H, D] only a single head's blocks are evenly spaced, and so multiplied
    # without a copy.
    rows, heads = (1, 1) if q.device.type == "cpu" else k.shape[:2]
    group, blocks = q.shape[1] // k.shape[1], q.shape[2] // block_size
    summaries = torch.empty(*q.shape[:2], blocks, q.shape[3], dtype=dtype, device=q.device)
    for row, head, token in product(
        range(0, k.shape[0], rows), range(0, k.shape[1], heads), range(0, k.shape[2], tokens)
    ):
        q_heads, k_heads = (slice(head * size, (head + heads) * size) for size in (group, 1))
        place = slice(row, row + rows), slice(token, token + tokens)
        q_blocks, k_blocks, v_blocks = (
            x[place[0], part, place[1]].to(dtype).unflatten(2, (-1, block_size))
            for x, part in ((q, q_heads), (k, k_heads), (v, k_heads))
        )
        written = slice(token // block_size, (token + tokens) // block_size)
        summaries[place[0], q_heads, written] = _attention_summary(q_blocks, k_blocks, v_blocks, scale)
    return summaries


def _attention_summary(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """c_j = mean over rows of softmax(Q_j K_j^T) V_j = (mean over rows of the softmax) V_j.

    q: [B, H, U, S, D]; k, v: [B, G, U, S, D] -> [B, H, U, D].
    """
    group = q.shape[1] // k.shape[1]
    batch, heads, blocks, size, _ = q.shape
    # The query heads of a group are rows of one product with the group's keys.
    queries = q.unflatten(1, (-1, group)).transpose(2, 3).flatten(3, 4)
    logits = (queries @ k.transpose(-1, -2)).mul_(scale)
    weights = logits.softmax(-1).unflatten(3, (group, size)).mean(4)
    return (weights @ v).transpose(2, 3).reshape(batch, heads, blocks, -1)


def sum_queries(q: Tensor, size: int) -> Tensor:
    """Sums of every ``size`` consecutive queries, the last over the rest, in float32 or wider.

    q: [B, H, L, D] -> [B, H, ceil(L / size), D].
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    whole = q.shape[2] // size * size
    sums = q[:, :, :whole].unflatten(2, (-1, size)).sum(3, dtype=dtype)
    if whole == q.shape[2]:
        return sums
    return torch.cat([sums, q[:, :, whole:].sum(2, keepdim=True, dtype=dtype)], dim=2)


def relevance(sums: Tensor, summaries: Tensor, groups: int) -> Tensor:
    """R_ij, summed over the query heads of each key/value head.

    sums: [B, H, choices, D]; summaries: [B, H, U, D], or [B, G, U, D] for a summary that a group shares
    -> [B, G, choices, U].
    """
    if summaries.shape[1] == groups:
        sums = sums.unflatten(1, (groups, -1)).sum(2)
    return (sums @ summaries.transpose(-1, -2)).unflatten(1, (groups, -1)).sum(2)


def rank_blocks(relevancy: Tensor, document: Document, layout: Layout, width: int, first: int) -> Tensor:
    """The ids of the ``width`` most relevant candidates of each choice, ascending, -1 where there is none.

    relevancy: [B, G, choices, U] of the document's choices from ``first`` on and its first U blocks
    -> int64 [B, G, choices, width]. Of equally relevant blocks the earlier one wins.
    """
    choices, blocks = relevancy.shape[2:]
    device = relevancy.device
    candidates = torch.tensor([[layout.candidates(first + i)] for i in range(choices)], device=device)
    closed = torch.arange(blocks, device=device) >= candidates
    order = relevancy.masked_fill(closed, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    ids = order[..., :width] + document.first_block
    empty = torch.arange(ids.shape[-1], device=device) >= candidates
    nowhere = layout.blocks
    ids = ids.masked_fill(empty, nowhere).sort(dim=-1).values
    ids = ids.masked_fill(ids == nowhere, -1)
    return torch.nn.functional.pad(ids, (0, width - ids.shape[-1]), value=-1)
