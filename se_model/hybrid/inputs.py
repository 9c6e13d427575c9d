"""What a batch says about its tokens: which are padding, where they stand, and whether that can be served."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from se_model.hybrid.configuration import Mamba2HybridConfig
from se_model.parallel import SequenceShard
from se_model.span.documents import DocumentBounds, Documents


def check_inputs(
    config: Mamba2HybridConfig,
    shape: torch.Size,
    attention_mask: Tensor | None,
    cu_seqlens: Documents | None,
    cache: Cache | None,
    shard: SequenceShard | None = None,
) -> None:
    """Refuse batches that would be computed wrongly. shape: [B, L, hidden]; attention_mask: [B, past + L].

    Raises:
        ValueError: on a mask that is not 2-D, has holes or the wrong length; on packed rows with a mask or a
            cache; on a cache made for another model, or to be continued behind right padding; on a shard
            with any of these, or of another length.
    """
    batch, length = shape[:2]
    if shard is not None:
        _check_shard(shard, batch, length)
        if not (attention_mask is None and cu_seqlens is None and cache is None):
            raise ValueError(
                "a shard of a row says itself where documents begin, and has neither padding nor a cache: "
                "leave attention_mask, cu_seqlens and past_key_values out, and pass use_cache=False"
            )
    if cache is not None and len(cache.layers) != config.num_hidden_layers:
        raise ValueError("a hybrid's cache knows its layers: make it as DynamicCache(config=model.config)")
    past = 0 if cache is None else cache.get_seq_length()
    if cu_seqlens is not None:
        if attention_mask is not None:
            raise ValueError("a packed row (cu_seqlens) has no padding: leave attention_mask out")
        if cache is not None:
            raise ValueError(
                "a packed row (cu_seqlens) cannot fill or continue a cache: pass use_cache=False"
            )
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != (batch, past + length):
        given = list(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask)
        raise ValueError(f"attention_mask must be [B, past + L] = {[batch, past + length]}; got {given}")
    tokens = attention_mask.bool()
    if past and not bool(tokens[:, past - 1 :].all()):
        raise ValueError("a cache cannot be continued behind or with padding on the right: pad on the left")
    # A row is padding, then tokens, then padding: it changes from nothing to something at most once.
    starts = (tokens[:, 1:] & ~tokens[:, :-1]).sum(dim=1) + tokens[:, 0]
    if bool((starts > 1).any()):
        raise ValueError("attention_mask has holes: each row's tokens must be contiguous")


def _check_shard(shard: SequenceShard, batch: int, length: int) -> None:
    if length != shard.tokens_per_rank:
        raise ValueError(
            f"a rank is given its own {shard.tokens_per_rank} tokens of {shard.length}; got {length}"
        )
    if batch != 1 and len(shard.bounds) > 2:
        raise ValueError(f"documents are packed in one row, but the batch has {batch}: flatten the rows")


def padding_of(attention_mask: Tensor | None, length: int) -> Tensor | None:
    """True where a token of the last ``length`` is padding: bool [B, L], or None where there is none."""
    if attention_mask is None:
        return None
    padding = ~attention_mask[:, attention_mask.shape[1] - length :].bool()
    return padding if bool(padding.any()) else None


def positions_of(
    x: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    documents: DocumentBounds | None,
    cache: Cache | None,
    shard: SequenceShard | None = None,
) -> Tensor:
    """The position of each token in its row or document: int64 [B, L], or [1, L] where all rows agree.

    Raises:
        ValueError: if given positions start anew within a row and no cu_seqlens says that documents do.
    """
    length = x.shape[1]
    if shard is not None and (position_ids is None or position_ids is shard.position_ids(x.device)):
        return shard.position_ids(x.device)
    if position_ids is not None:
        steps = position_ids.diff(dim=-1)
        if attention_mask is None and documents is None and bool((steps != 1).any()):
            raise ValueError(
                "position_ids are not consecutive: give cu_seqlens for a packed row or an attention_mask for "
                "a padded one, or the state-space layers would run across"
            )
        return position_ids
    if documents is not None:
        return documents.position_ids(x.device)
    if attention_mask is not None:
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
    past = 0 if cache is None else cache.get_seq_length()
    return torch.arange(past, past + length, device=x.device)[None]
