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
from se_model.span.rules import QuerySample


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

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv]; blocks: int64 [B, G, choices, K], -1 for none;
    ``counts`` says how many are not. Returns [B, H, L, Dv].
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    scale = options.scale_for(q.shape[3])
    group = q.shape[1] // k.shape[1]
    outputs = []
    for b, h in product(range(q.shape[0]), range(q.shape[1])):
        g = h // group
        queries, keys, values = (x.to(dtype) for x in (q[b, h], k[b, g], v[b, g]))
        outputs.append(_attend_head(queries, keys, values, blocks[b, g].tolist(), layout, scale))
    return torch.stack(outputs).reshape(*q.shape[:3], v.shape[3]).to(q.dtype)


def choose_blocks(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    """The k candidates of the largest R_ij (paper, section 3.3), by sorting a list.

    Returns int64 [B, G, choices, min(top_k, most_candidates)], ascending, -1 where there is none. R_ij is
    summed over the query heads of a group; a causal choice is judged by the queries of the choice before.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.detach().to(dtype) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    width = min(options.top_k, layout.most_candidates)
    chosen = []
    for b, g in product(range(k.shape[0]), range(k.shape[1])):
        heads = q[b, g * group : (g + 1) * group]
        chosen.append(_choose_for_group(heads, k[b, g], v[b, g], layout, width, options))
    shape = (q.shape[0], k.shape[1], layout.choices, width)
    return torch.tensor(chosen, dtype=torch.int64, device=q.device).reshape(shape)


def _attend_head(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[list[int]], layout: Layout, scale: float
) -> Tensor:
    """q, k: [L, D], v: [L, Dv] of one head; blocks: the ids that each choice retrieves. Returns [L, Dv]."""
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
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, width: int, options: SpanOptions
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
        best: list[int] = []
        if candidates and width:
            judged = slice(*(choices[index - 1][1:] if options.causal else (first, last)))
            spans = [slice(starts[block], starts[block] + layout.block_size) for block in candidates]
            heads = [_relevancies(head, head[judged], k, v, spans, options) for head in q]
            relevancy = torch.stack(heads).sum(0)
            order = sorted(range(len(candidates)), key=lambda place: (-float(relevancy[place]), place))
            best = sorted(candidates[place] for place in order[:width])
        chosen.append(best + [-1] * (width - len(best)))
    return chosen


def _relevancies(
    q: Tensor, queries: Tensor, k: Tensor, v: Tensor, spans: list[slice], options: SpanOptions
) -> Tensor:
    """What the comparisons of one head's queries with each block come to: [blocks].

    q, k, v: [L, D]; queries: [n, D] of the choice; spans: the blocks' tokens.
    """
    scale = options.scale_for(q.shape[1])
    judges = queries[_judges(queries, options.queries)]
    if options.summary == "key_bounds":
        compared = [_compare_with_bounds(judges, k[at]) for at in spans]
    elif options.summary == "representative_keys":
        compared = [(judges @ k[at][_farthest(k[at], 4)].T).amax(1) for at in spans]
    else:
        compared = [judges @ _summarise(q[at], k[at], v[at], scale, options.summary) for at in spans]
    scores = torch.stack(compared, dim=1)
    if options.relevancy in ("mass", "peak"):
        scores = (scores * scale).softmax(1)
    return scores.amax(0) if options.relevancy in ("max", "peak") else scores.sum(0)


def _judges(queries: Tensor, sample: QuerySample) -> list[int]:
    """Which of a choice's queries [n, D] are compared with the blocks."""
    everyone = list(range(len(queries)))
    if sample.kind == "stride":
        return everyone[:: sample.number]
    if sample.kind == "all":
        return everyone
    return _farthest(queries, sample.number)


def _farthest(x: Tensor, number: int) -> list[int]:
    """The ``number`` of vectors x [n, D] that are farthest from their mean, of equals the earlier ones."""
    # Rounded so that equal distances are equal, as `selection.representatives` says.
    apart = x.double() - x.double().mean(0)
    distances = apart.square().sum(1).float().tolist()
    return sorted(sorted(range(len(x)), key=lambda t: (-distances[t], t))[:number])


def _summarise(q: Tensor, k: Tensor, v: Tensor, scale: float, summary: str) -> Tensor:
    """c_j = mean over rows of softmax(Q_j K_j^T / sqrt(d)) V_j, or the mean key. q, k, v: [S, D] -> [D]."""
    if summary == "mean_key":
        return k.mean(0)
    return ((q @ k.T * scale).softmax(-1) @ v).mean(0)


def _compare_with_bounds(judges: Tensor, k: Tensor) -> Tensor:
    """The most that <Q_i[t], any key> can be if every channel of it lies between its bounds in the block."""
    return torch.maximum(judges * k.amin(0), judges * k.amax(0)).sum(1)


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
