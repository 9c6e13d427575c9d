"""Full, sliding-window and chunk-local attention with the row's keys spread over ranks.

Full attention gathers all keys and values of the row on every rank: (P - 1) times its own go out and come in,
and back in the backward. That is what it costs, and what span-expanded attention avoids. The local ones
receive no more than they look back: from one neighbour where that holds it, else by gathering.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from se_model.baselines import NoMemoryConfig, SlidingWindowConfig
from se_model.baselines.full import attend_within
from se_model.parallel.exchange import gather_states, receive_left
from se_model.parallel.shard import SequenceShard
from se_model.parallel.span import span_attention
from se_model.span.protocol import Attention, AttentionConfig
from se_model.span.schedule import as_chunk_sizes, draw_chunk_size

PURPOSE = "keys and values"

# Of a tile of queries over gathered keys: what its mask may hold. It is made anew in the backward.
_MASK_ELEMENTS = 2**24


class ParallelAttention(Protocol):
    """What a kind of attention computes on one rank of several."""

    def __call__(
        self,
        config: AttentionConfig,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shard: SequenceShard,
        *,
        layer: int,
        step: int,
        scale: float | None,
    ) -> Tensor:
        """q: [B, H, n, D]; k, v: [B, G, n, D], this rank's, RoPE applied. Returns [B, H, n, D].

        layer, step: as ``AttentionConfig.bind`` takes them; the same on all ranks.
        """
        ...


def full_attention(q: Tensor, k: Tensor, v: Tensor, shard: SequenceShard, *, scale: float | None) -> Tensor:
    """Own queries see all keys of their document up to themselves, on whatever rank: by all-gather of K, V.

    q: [B, H, n, D]; k, v: [B, G, n, D]. Returns [B, H, n, D]. Memory: the row's keys and values.
    """
    gathered = gather_states(torch.stack([k, v]), shard.group, PURPOSE)  # [P, 2, B, G, n, D]
    # Also where that is nothing: so every rank comes to the exchange's backward.
    before = _side_by_side(gathered[shard.first_rank : shard.group.rank])
    before = before.narrow(3, before.shape[3] - shard.tokens_before, shard.tokens_before)
    lengths = [shard.local_bounds[1], q.shape[2] - shard.local_bounds[1]]
    (first_q, q), (first_k, k), (first_v, v) = (x.split(lengths, dim=2) for x in (q, k, v))
    first_k, first_v = (torch.cat(pair, dim=2) for pair in ((before[0], first_k), (before[1], first_v)))
    output = attend_behind(first_q, first_k, first_v, scale)
    if not lengths[1]:
        return output
    bounds = tuple(bound - lengths[0] for bound in shard.local_bounds[1:])
    return torch.cat([output, attend_within(q, k, v, bounds, scale)], dim=2)


def _side_by_side(gathered: Tensor) -> Tensor:
    """The tokens of R ranks in a row. gathered: [R, 2, B, G, n, D] -> [2, B, G, R * n, D]."""
    return gathered.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)


def attend_behind(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, *, mask_elements: int = _MASK_ELEMENTS
) -> Tensor:
    """Causal attention of the last m of p + m tokens. q: [B, H, m, D]; k, v: [B, G, p + m, D].

    Queries go tile by tile, each with a mask of at most ``mask_elements`` (and at least one query).
    """
    new, total = q.shape[2], k.shape[2]
    if new == total:
        return attend_within(q, k, v, (0, new), scale)
    size = max(1, mask_elements // total)
    outputs, end = [], total - new
    for queries in q.split(size, dim=2):
        end += queries.shape[2]
        given = (queries, k[:, :, :end], v[:, :, :end], scale)
        if torch.is_grad_enabled():
            outputs.append(checkpoint(_attend_last, *given, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(_attend_last(*given))
    return torch.cat(outputs, dim=2)


def _attend_last(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    new, total = q.shape[2], k.shape[2]
    visible = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=grouped)


def _full(
    config: AttentionConfig,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shard: SequenceShard,
    *,
    layer: int,
    step: int,
    scale: float | None,
) -> Tensor:
    return full_attention(q, k, v, shard, scale=scale)


def _window(
    config: AttentionConfig,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shard: SequenceShard,
    *,
    layer: int,
    step: int,
    scale: float | None,
) -> Tensor:
    assert isinstance(config, SlidingWindowConfig)
    attention = config.bind(layer=layer, step=step)
    reach = config.window - 1
    return _attend_locally(
        attention, q, k, v, shard, reach=reach, seen=min(reach, shard.tokens_before), scale=scale
    )


def _chunks(
    config: AttentionConfig,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shard: SequenceShard,
    *,
    layer: int,
    step: int,
    scale: float | None,
) -> Tensor:
    assert isinstance(config, NoMemoryConfig)
    attention = config.bind(layer=layer, step=step)
    size = draw_chunk_size(as_chunk_sizes(config.chunk_sizes), seed=config.seed, step=step, layer=layer)
    # Chunks count from their document's start: of the chunk under way, so much lies before this shard.
    seen = shard.tokens_before % size
    return _attend_locally(attention, q, k, v, shard, reach=size - 1, seen=seen, scale=scale)


def _attend_locally(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shard: SequenceShard,
    *,
    reach: int,
    seen: int,
    scale: float | None,
) -> Tensor:
    """Attention over the own tokens and the ``seen`` before them, which have no queries of their own here.

    reach: the most that any rank sees, the same on all.
    """
    if reach:
        before = _keys_before(torch.stack([k, v]), reach, shard)
        before = before.narrow(3, before.shape[3] - seen, seen)
        k, v = (torch.cat(pair, dim=2) for pair in ((before[0], k), (before[1], v)))
        q = F.pad(q, (0, 0, seen, 0))
    bounds = [0, *(bound + seen for bound in shard.local_bounds[1:])]
    # A batch of several rows is one document each.
    cu_seqlens = None if len(bounds) == 2 else torch.tensor(bounds, dtype=torch.int32, device=q.device)
    return attention(q, k, v, scale=scale, cu_seqlens=cu_seqlens)[:, :, seen:]


def _keys_before(pair: Tensor, reach: int, shard: SequenceShard) -> Tensor:
    """Keys and values of the last tokens before this shard, ``reach`` or all that are.

    pair: [2, B, G, n, D], the own ones. Returns [2, B, G, any, D].
    """
    length = pair.shape[3]
    if reach <= length:
        last = pair[:, :, :, length - reach :]
        return receive_left(last, shard.group, last.shape, PURPOSE)
    gathered = gather_states(pair, shard.group, PURPOSE)
    return _side_by_side(gathered[: shard.group.rank])


PARALLEL_ATTENTION: dict[str, ParallelAttention] = {
    "full": _full,
    "span": span_attention,
    "window": _window,
    "none": _chunks,
}


def parallel_attention(kind: str) -> ParallelAttention:
    """The implementation for a kind of attention (``AttentionConfig.kind``).

    Raises:
        ValueError: if there is none.
    """
    if kind not in PARALLEL_ATTENTION:
        raise ValueError(
            f"attention {kind!r} cannot run with its row over several ranks (context_parallel); "
            f"these can: {', '.join(PARALLEL_ATTENTION)}"
        )
    return PARALLEL_ATTENTION[kind]
