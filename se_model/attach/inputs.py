"""Completes the inputs of a model with an attached attention, or refuses them before the first layer runs.

A layer sees too little to do so. Some architectures of transformers (5.23) give their mask function no
positions, so that packed documents go unnoticed (granitemoehybrid); none looks at positions beside a mask;
and which blocks span attention chooses depends on absolute positions, which full attention ignores.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from se_model.attach.draws import number_call
from se_model.attach.marks import Attachment, RunningCall, running
from se_model.recurrence.decoders import handles_packing, recurrent_layers, refuse_without_shards
from se_model.span.documents import DocumentBounds

Call = tuple[tuple[Any, ...], dict[str, Any]]


def watch_inputs(
    decoder: nn.Module, attachment: Attachment, packing_refusal: str | None
) -> tuple[RemovableHandle, ...]:
    """Watches every call of `decoder` from now on, until the returned handles are removed.

    Where a call leaves out `position_ids` ([B, L]), they are filled in: counted from each row's first real
    token under `attention_mask` ([B, Lk]), from each document's first under `cu_seqlens` ([N + 1]). A tensor
    of `cu_seqlens` becomes a `DocumentBounds` here, once for all layers. Recurrent layers see no positions:
    for them `position_ids` that restart become a `DocumentBounds`, too, and no cache is kept of packed
    documents unless the call asks for one.

    attachment: counts the calls that train, and holds the record of a call until that returns or fails, so
    that a layer which was not told of packed documents or of a shard refuses to run;
    packing_refusal: why the model cannot keep packed documents apart; None where it can.

    Raises, at a call:
        ValueError: for an attention mask that is not [B, Lk]; for packed documents, if the model would carry
            state across them or transformers would not notice them; for a shard, if some layer would see its
            own rank's tokens only, or beside a cache; and where a backward pass repeats the whole decoder.
    """
    needs_bounds = not handles_packing(decoder) and bool(recurrent_layers(decoder))
    complete = partial(_complete, packing_refusal=packing_refusal, needs_bounds=needs_bounds)
    begin = partial(_begin, attachment=attachment, complete=complete)
    return (
        decoder.register_forward_pre_hook(begin, with_kwargs=True),
        decoder.register_forward_hook(partial(_end, attachment=attachment), always_call=True),
    )


def _begin(
    decoder: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    attachment: Attachment,
    complete: Callable[[nn.Module, dict[str, Any], bool], bool],
) -> Call:
    parameters = inspect.signature(decoder.forward).parameters
    call = dict(zip(parameters, args, strict=False)) | kwargs
    sharded = call.get("shard") is not None
    packed = complete(decoder, call, sharded)
    number = number_call(decoder, call, attachment)
    attachment.call = RunningCall(number, packed, sharded)
    running.set(attachment)
    return (), call


def _end(decoder: nn.Module, args: tuple[Any, ...], output: Any, *, attachment: Attachment) -> None:
    attachment.call = None
    running.set(None)


def _complete(
    decoder: nn.Module,
    call: dict[str, Any],
    sharded: bool,
    *,
    packing_refusal: str | None,
    needs_bounds: bool,
) -> bool:
    """Fills in what the call leaves out; returns whether a row of it holds several documents.

    needs_bounds: some layers are recurrent, and see no positions.
    """
    mask, positions = call.get("attention_mask"), call.get("position_ids")
    cu_seqlens = call.get("cu_seqlens")
    if cu_seqlens is None:
        cu_seqlens = call.get("cu_seq_lens_q")  # what transformers' own collator calls it
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        what = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"the attention mask must be [B, L], got {what}: masks over pairs are refused")
    if sharded:
        refuse_without_shards(decoder)
        _leave_out_cache(decoder, call)
        return False
    restarting = cu_seqlens is None and _restart(positions, mask)
    packed = cu_seqlens is not None or restarting
    if packed and packing_refusal:
        raise ValueError(packing_refusal)
    if restarting and mask is not None:
        raise ValueError(
            "position_ids restart as for packed documents, but transformers reads them so only where there "
            "is no attention_mask: leave it out, and padding with it"
        )
    if packed and needs_bounds:
        if cu_seqlens is None:
            cu_seqlens = _documents_of(positions)
        if call.get("use_cache") is None:
            call["use_cache"] = False
    if cu_seqlens is not None:
        tokens = _tokens(call)
        documents = DocumentBounds.of(cu_seqlens, tokens.shape[1], tokens.shape[0])
        call["cu_seqlens"] = documents
        packed = len(documents.bounds) > 2
        if not handles_packing(decoder):
            call["position_ids"] = _positions_of(documents, positions, tokens)
    elif positions is None and mask is not None and _takes_positions(decoder) and not bool(mask.all()):
        call["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -_tokens(call).shape[1] :]
    return packed


def _documents_of(positions: Tensor | None) -> Tensor:
    """Where documents begin and the row ends: int64 [N + 1], read off positions [1, L] that restart."""
    assert positions is not None
    if positions.dim() != 2 or positions.shape[0] != 1:
        raise ValueError(
            f"position_ids {list(positions.shape)} restart: recurrent layers take packed documents in one "
            "row, [1, L]; flatten the rows into one, and give cu_seqlens"
        )
    starts = (positions[0].diff() != 1).nonzero()[:, 0] + 1
    return F.pad(F.pad(starts, (1, 0)), (0, 1), value=positions.shape[1])


def _leave_out_cache(decoder: nn.Module, call: dict[str, Any]) -> None:
    """Has a call with a shard keep no cache: it would hold one rank's tokens, and not tell so."""
    if call.get("past_key_values") is not None or call.get("use_cache"):
        raise ValueError(
            f"{type(decoder).__name__} is given a cache beside a shard: new tokens are not decoded over "
            "several ranks (context_parallel). Pass use_cache=False and no past_key_values, and generate on "
            "one rank"
        )
    if "use_cache" in inspect.signature(decoder.forward).parameters:
        call["use_cache"] = False


def _positions_of(documents: DocumentBounds, given: Tensor | None, tokens: Tensor) -> Tensor:
    """The positions that go with `documents`; given ones must be those."""
    expected = documents.position_ids(tokens.device if given is None else given.device)
    if given is None or given is expected:
        return expected
    if given.shape[-1] != expected.shape[-1] or not bool((given == expected).all()):
        raise ValueError("position_ids must count from 0 in every document of cu_seqlens")
    return given


def _takes_positions(decoder: nn.Module) -> bool:
    return "position_ids" in inspect.signature(decoder.forward).parameters


def _tokens(call: dict[str, Any]) -> Tensor:
    tokens = call.get("input_ids")
    return call["inputs_embeds"] if tokens is None else tokens


def _restart(positions: Tensor | None, mask: Tensor | None) -> bool:
    """Whether positions step by anything but one between two real tokens; positions: [..., L]."""
    if positions is None:
        return False
    breaks = positions.diff(dim=-1) != 1
    if mask is not None:
        real = mask[:, -positions.shape[-1] :].bool()
        breaks = breaks & real[:, 1:] & real[:, :-1]
    return bool(breaks.any())
