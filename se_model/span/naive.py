"""The oracle: span-expanded attention as the paper writes it, one head and one chunk at a time.

Slow, in float32 or wider, with arithmetic of its own, so that it can be checked against the paper by eye and
the other backends against it.
"""

from __future__ import annotations

from itertools import pairwise, product

import torch
from torch import Tensor

from se_model.span.layout import Layout
from se_model.span.options import SpanOptions


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: tuple[int, ...],
    layout: Layout,
    options: SpanOptions,
) -> Tensor:
    """Keys of chunk i = [K^m of the chosen blocks ; K_i], values likewise (paper, section 3.2, step 4).

    q: [B, H, L, D]; k, v: [B, G, L, D]; blocks: int64 [B, G, choices, K], -1 for none; ``counts`` says how
    many are not. Returns [B, H, L, D].
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    scale = options.scale_for(q.shape[3])
    group = q.shape[1] // k.shape[1]
    outputs = []
    for b, h in product(range(q.shape[0]), range(q.shape[1])):
        g = h // group
        queries, keys, values = (x.to(dtype) for x in (q[b, h], k[b, g], v[b, g]))
        outputs.append(_attend_head(queries, keys, values, blocks[b, g].tolist(), layout, scale))
    return torch.stack(outputs).reshape(q.shape).to(q.dtype)


def choose_blocks(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    """The k candidates of the largest R_ij = sum_t <Q_i[t], c_j> (paper, section 3.3), by sorting a list.

    Returns int64 [B, G, choices, min(top_k, most_candidates)], ascending, -1 where there is none. R_ij is
    summed over the query heads of a group; a causal choice takes the queries of the choice before.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.detach().to(dtype) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    width = min(options.top_k, layout.most_candidates)
    how = (options.scale_for(q.shape[3]), options.summary, options.causal)
    chosen = []
    for b, g in product(range(k.shape[0]), range(k.shape[1])):
        heads = q[b, g * group : (g + 1) * group]
        chosen.append(_choose_for_group(heads, k[b, g], v[b, g], layout, width, *how))
    shape = (q.shape[0], k.shape[1], layout.choices, width)
    return torch.tensor(chosen, dtype=torch.int64, device=q.device).reshape(shape)


def _attend_head(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[list[int]], layout: Layout, scale: float
) -> Tensor:
    """q, k, v: [L, D] of one head; blocks: the ids that each choice retrieves. Returns [L, D]."""
    starts = _block_starts(layout)
    outputs = []
    for choice, (chunk, first, last) in enumerate(_choices(layout)):
        span = [
            token
            for block in blocks[choice]
            if block >= 0
            for token in range(starts[block], starts[block] + layout.block_size)
        ]
        keys = torch.tensor([*span, *range(chunk, last)], device=q.device)
        logits = q[first:last] @ k[keys].T * scale
        future = [[False] * len(span) + [key > t for key in range(chunk, last)] for t in range(first, last)]
        weights = logits.masked_fill(torch.tensor(future, device=q.device), -torch.inf).softmax(-1)
        outputs.append(weights @ v[keys])
    return torch.cat(outputs)


def _choose_for_group(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, width: int, scale: float, summary: str, causal: bool
) -> list[list[int]]:
    """q: [H / G, L, D] of a group's query heads; k, v: [L, D]. Returns the ids for every choice."""
    starts = _block_starts(layout)
    choices = _choices(layout)
    chosen = []
    for index, (chunk, first, last) in enumerate(choices):
        document = max(bound for bound in layout.bounds if bound <= first)
        candidates = [
            block
            for block, start in enumerate(starts)
            if document <= start and start + layout.block_size <= chunk
        ]
        judges = choices[index - 1][1:] if causal else (first, last)
        relevancy: dict[int, float] = {}
        for block in candidates if width else []:
            tokens = slice(starts[block], starts[block] + layout.block_size)
            relevancy[block] = 0.0
            for head in q:
                c = _summarise(head[tokens], k[tokens], v[tokens], scale, summary)
                relevancy[block] += float((head[slice(*judges)] @ c).sum())
        best = sorted(relevancy, key=lambda block: (-relevancy[block], block))[:width]
        chosen.append(sorted(best) + [-1] * (width - len(best)))
    return chosen


def _summarise(q: Tensor, k: Tensor, v: Tensor, scale: float, summary: str) -> Tensor:
    """c_j = mean over rows of softmax(Q_j K_j^T / sqrt(d)) V_j, or the mean key. q, k, v: [S, D] -> [D]."""
    if summary == "mean_key":
        return k.mean(0)
    return ((q @ k.T * scale).softmax(-1) @ v).mean(0)


def _choices(layout: Layout) -> list[tuple[int, int, int]]:
    """(start of the chunk, first query, end of the queries) of every choice in the row."""
    return [
        (chunk, first, min(first + layout.refresh, chunk + layout.chunk_size, end))
        for start, end in pairwise(layout.bounds)
        for chunk in range(start, end, layout.chunk_size)
        for first in range(chunk, min(chunk + layout.chunk_size, end), layout.refresh)
    ]


def _block_starts(layout: Layout) -> list[int]:
    """The first token of every block in the row."""
    return [block for start, end in pairwise(layout.bounds) for block in range(start, end, layout.block_size)]
