"""What represents a memory block when blocks are compared, and the sums of queries it is compared with.

Where a block is represented by several vectors for each key/value head, they stand side by side as if they
were heads. The bound on a query's logit with the keys of a block, sum_d max(q_d high_d, q_d low_d), is
max(q, 0) . high + min(q, 0) . low: linear in the query's two parts, so these stand side by side too, where
queries are summed.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from se_model.span.options import SpanOptions
from se_model.span.rules import OWN_NUMBERS, REPRESENTATIVE_KEYS
from se_model.span.selection.representatives import representatives

# Tokens summarised at a time: bounds the memory of working in float32 on half-precision inputs.
_TOKENS_AT_ONCE = 16_384


def summary_dtype(summary: str, keys: torch.dtype) -> torch.dtype:
    """The dtype of a summary: that of keys whose own numbers it is; means are in float32 or wider."""
    return keys if summary in OWN_NUMBERS else torch.promote_types(keys, torch.float32)


def summarise(q: Tensor, k: Tensor, v: Tensor, options: SpanOptions) -> Tensor:
    """The summary c_j of every block, in `summary_dtype`.

    q: [B, H, U * S, D]; k, v: [B, G, U * S, D] -> [B, `rules.summary_heads`, U, D]: one for each query head
    for "attention"; of each key/value head the mean for "mean_key", for "key_bounds" the largest of its keys
    in each channel (Quest's upper bound, Tang et al. 2024), then the least, and for "representative_keys" the
    4 keys that lie farthest from the block's mean key, in their order, of equals the earlier ones.
    """
    dtype, block_size = summary_dtype(options.summary, k.dtype), options.block_size
    if options.summary == "mean_key":
        return k.unflatten(2, (-1, block_size)).mean(3, dtype=dtype)
    if options.summary == "key_bounds":
        low, high = k.unflatten(2, (-1, block_size)).aminmax(dim=3)
        return torch.stack([high, low], dim=2).flatten(1, 2)
    if options.summary == "representative_keys":
        blocks = k.unflatten(2, (-1, block_size))
        if block_size > REPRESENTATIVE_KEYS:
            places = representatives(k, block_size, REPRESENTATIVE_KEYS)
            blocks = torch.take_along_dim(blocks, places[..., None], dim=3)
        return blocks.transpose(2, 3).flatten(1, 2)
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


def sum_queries(q: Tensor, size: int, options: SpanOptions) -> Tensor:
    """Sums of every ``size`` consecutive queries, the last over the rest, in float32 or wider.

    q: [B, H, L, D] -> [B, H, ceil(L / size), D]; for "key_bounds" [B, 2 H, ceil(L / size), D], of each head
    the sum of what is positive, then of what is negative.
    """
    whole = q.shape[2] // size * size
    sums = [_total(q[:, :, :whole].unflatten(2, (whole // size, size)), options)] if whole else []
    if whole < q.shape[2]:
        sums.append(_total(q[:, :, None, whole:], options))
    return torch.cat(sums, dim=2) if len(sums) > 1 else sums[0]


def sum_all_queries(q: Tensor, options: SpanOptions) -> Tensor:
    """The sum of any number of queries, also of none, as `sum_queries`: [B, H or 2 H, 1, D]."""
    return _total(q[:, :, None], options)


def _total(q: Tensor, options: SpanOptions) -> Tensor:
    """Sums over queries. q: [B, H, sums, n, D] -> [B, H or 2 H, sums, D]."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    if options.summary != "key_bounds":
        return q.sum(3, dtype=dtype)
    parts = [part.sum(3, dtype=dtype) for part in (q.clamp(min=0), q.clamp(max=0))]
    return torch.stack(parts, dim=2).flatten(1, 2)
