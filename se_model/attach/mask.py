"""How an attached layer is told about padding and packing: by L numbers per row, not L x L pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from se_model.attach.marks import running
from se_model.attach.runs import remember_runs

MaskFunction = Callable[[Any, Any, Any, Any], Any]

# Of transformers' implementations (5.23) those whose masks keep packed documents apart; flash-attn's do not.
_TELL_DOCUMENTS = ("eager", "sdpa", "flex_attention")


@dataclass(frozen=True)
class UnreadMask:
    """In place of the mask of a sliding window where no layer was found to have one: who reads it refuses."""

    window: int


def mask_of(**given: Any) -> Any:
    """The mask function registered with transformers 5.23 (`masking_utils.sdpa_mask` has the same arguments).

    For the layers that `attach` takes, what `real_tokens_or_documents` returns. Where `local_size` says that
    the mask is for layers with a sliding window, which stay as they are, what their own implementation makes
    of the same arguments; an `UnreadMask` where there are none.

    Raises:
        ValueError: for a mask that is neither; for packed documents that such layers would not be told of.
    """
    window = given.get("local_size")
    if window is None:
        return real_tokens_or_documents(**given)
    attachment = running.get()
    if attachment is None or attachment.left is None:
        return UnreadMask(window)
    packed = attachment.call is not None and attachment.call.packed
    if packed and not (attachment.left in _TELL_DOCUMENTS and _tells_documents(**given)):
        raise ValueError(
            f"layers with a sliding window of {window} tokens stay as they are, on attention "
            f"{attachment.left!r}, and are not told where packed documents begin. They are told by "
            f"position_ids on {', '.join(_TELL_DOCUMENTS)}, without an attention_mask and with "
            "use_cache=False"
        )
    make = ALL_MASK_ATTENTION_FUNCTIONS.get(attachment.left)
    return None if make is None else make(**given)


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
    """The mask of layers that are taken; the arguments are those of `masking_utils.sdpa_mask`.

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


def _tells_documents(
    mask_function: MaskFunction, batch_size: int, q_length: int, device: torch.device | str, **_: Any
) -> bool:
    """Whether some token does not see the one before it; in a window of one token none ever does."""
    return bool(_starts(mask_function, batch_size, q_length, device)[:, 1:].any())


def _starts(sees: MaskFunction, batch_size: int, length: int, device: torch.device | str) -> Tensor:
    """Which tokens do not see the one before them: bool [B, L]."""
    rows = torch.arange(batch_size, device=device)[:, None]
    tokens = torch.arange(length, device=device)[None, :].expand(batch_size, -1)
    starts: Tensor = ~sees(rows, 0, tokens, (tokens - 1).clamp(min=0))
    return starts


def _documents(sees: MaskFunction, batch_size: int, length: int, device: torch.device | str) -> Tensor:
    """Number the documents of each row: a token that does not see the one before it starts one."""
    rows = torch.arange(batch_size, device=device)[:, None]
    tokens = torch.arange(length, device=device)[None, :].expand(batch_size, -1)
    starts = _starts(sees, batch_size, length, device)
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
