"""How an attached layer is told about padding and packing: by L numbers per row, not L x L pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from se_model.attach.runs import remember_runs

MaskFunction = Callable[[Any, Any, Any, Any], Any]


def real_tokens_or_documents(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor | None:
    """The mask function registered with transformers 5.23 (`masking_utils.sdpa_mask` has the same signature).

    Returns None for plain causal attention, [B, Lk] bool (True for real tokens) under padding, or [B, L]
    int64 with the document number of each token where transformers reads packed documents from
    `position_ids` that restart.

    Raises:
        ValueError: for every other mask.
    """
    if kv_offset != 0 or int(q_offset) + q_length != kv_length:
        raise ValueError(
            f"{q_length} new tokens after {int(q_offset)} do not end a cache of {kv_length}: "
            "static and sliding caches are not supported"
        )
    if mask_function is not causal_mask_function:
        if use_vmap or attention_mask is not None:
            raise ValueError(
                "only causal, padding and packing masks are supported, not one made of mask functions"
            )
        return remember_runs(_documents(mask_function, batch_size, q_length, device))
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return remember_runs(attention_mask.clone())


def _documents(sees: MaskFunction, batch_size: int, length: int, device: torch.device | str) -> Tensor:
    """Number the documents of each row: a token that does not see the one before it starts one."""
    rows = torch.arange(batch_size, device=device)[:, None]
    tokens = torch.arange(length, device=device)[None, :].expand(batch_size, -1)
    starts = ~sees(rows, 0, tokens, (tokens - 1).clamp(min=0))
    documents = starts.long().cumsum(1)
    first_tokens = torch.where(starts, tokens, 0).cummax(1).values
    next_tokens = (tokens + 1).clamp(max=length - 1)
    sees_first = sees(rows, 0, tokens, first_tokens)
    sees_next = sees(rows, 0, tokens, next_tokens) & (next_tokens > tokens)
    if not sees_first.all() or sees_next.any():
        raise ValueError(
            "the model's mask is narrower or wider than causal attention within documents (a sliding window?)"
        )
    return documents
