"""The attentions that can run with the row's keys spread over ranks, by kind.

Sliding-window and chunk-local attention receive no more than they look back: from one neighbour where that
holds it, else by gathering all keys and values of the row, as full attention does (``full.py``).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.baselines import NoMemoryConfig, SlidingWindowConfig
from se_model.parallel.exchange import gather_states, receive_left
from se_model.parallel.full import PURPOSE, full_attention, side_by_side
from se_model.parallel.shard import SequenceShard
from se_model.parallel.span import span_attention
from se_model.span.documents import DocumentBounds
from se_model.span.protocol import Attention, AttentionConfig
from se_model.span.schedule import as_chunk_sizes, draw_chunk_size


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
        """q: [B, H, n, D]; k: [B, G, n, D]; v: [B, G, n, Dv], this rank's, RoPE applied.

        Returns [B, H, n, Dv].

        layer, step: as ``AttentionConfig.bind`` takes them; the same on all ranks.
        """
        ...


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
        before = _keys_before(torch.cat([k, v], dim=3), reach, shard)
        before = before.narrow(2, before.shape[2] - seen, seen)
        keys, values = before.split([k.shape[3], v.shape[3]], dim=3)
        k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        q = F.pad(q, (0, 0, seen, 0))
    # A batch of several rows is one document each.
    documents = None
    if shard.documents is not None:
        documents = DocumentBounds((0, *(bound + seen for bound in shard.local_bounds[1:])))
    return attention(q, k, v, scale=scale, cu_seqlens=documents)[:, :, seen:]


def _keys_before(pair: Tensor, reach: int, shard: SequenceShard) -> Tensor:
    """Keys and values of the last tokens before this shard, ``reach`` or all that are.

    pair: [B, G, n, D + Dv], the own ones, side by side. Returns [B, G, any, D + Dv].
    """
    length = pair.shape[2]
    if reach <= length:
        last = pair[:, :, length - reach :]
        return receive_left(last, shard.group, last.shape, PURPOSE)
    gathered = gather_states(pair, shard.group, PURPOSE)
    return side_by_side(gathered[: shard.group.rank])


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
