"""The one function that transformers calls for every attached attention layer.

It turns what arrives (a batch with a padding mask, a packed row, new tokens beside a cache) into runs of
tokens without padding, and gives those to the attention written on the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from se_model.attach.draws import step_of
from se_model.attach.marks import MARK, DecodedRun, LayerMark
from se_model.attach.mask import UnreadMask
from se_model.attach.runs import Run, runs_of
from se_model.attentions import Attention, AttentionConfig
from se_model.parallel import SequenceShard
from se_model.parallel.attention import parallel_attention
from se_model.span import SpanConfig
from se_model.span.decoding import decode, start_decoding
from se_model.span.documents import DocumentBounds
from se_model.span.statistics import running_layer
from se_model.span.widths import dense_attention

INTERFACE_NAME = "expansion_span"

# What some layers ask of their attention beyond causality. No attention here does any of it, and to leave
# it out would be another model.
_BEYOND_CAUSAL = ("sliding_window", "softcap", "s_aux", "sinks", "position_bias", "indices")


def forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | UnreadMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shard: SequenceShard | None = None,
    draw: int | None = None,
    cu_seqlens: DocumentBounds | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered function (transformers 5.23, `integrations/sdpa_attention.py` has the same signature).

    query: [B, H, Lq, D]; key: [B, G, Lk, D], with Lk > Lq while decoding; value: [B, G, Lk, Dv];
    attention_mask: what `mask_of` returned; shard: says that the tokens are a part of a row over several
    ranks, and what its documents are; draw: the number of the forward call, in training (`draws.py`);
    cu_seqlens: the documents of a packed row, as `watch_inputs` made them. Returns ([B, Lq, H, Dv], None).
    """
    mark: LayerMark | None = getattr(module, MARK, None)
    if mark is None:
        raise ValueError(
            f"{type(module).__name__} asks for attention {INTERFACE_NAME!r}, but its model was never given "
            "to attach(); a model that shares its config object with an attached one needs its own copy"
        )
    _refuse_what_would_be_dropped(module, dropout, kwargs)
    if isinstance(attention_mask, UnreadMask):
        raise ValueError(
            f"{type(module).__name__} is given the mask of a sliding window of {attention_mask.window} "
            "tokens, which no attention here supports"
        )
    span = _decodes_with_span(mark.attachment.config)
    step = step_of(module, mark.attachment, draw)
    if shard is not None:
        _refuse_beside_a_shard(module, query, key, attention_mask, cu_seqlens, shard)
        config = mark.attachment.config
        attend = parallel_attention(config.kind)
        output = attend(config, query, key, value, shard, layer=mark.layer, step=step, scale=scaling)
        return output.transpose(1, 2).contiguous(), None
    mark.attachment.require_whole_rows(module)
    if key.shape[2] != query.shape[2]:
        if cu_seqlens is not None:
            raise ValueError("a packed row (cu_seqlens) cannot continue a cache")
        if span is None:
            output = _attend_to_cache(query, key, value, attention_mask, scaling)
        else:
            output = _continue_span(mark, span, query, key, value, attention_mask, scaling)
    else:
        attention = mark.attachment.config.bind(layer=mark.layer, step=step)
        runs = _runs(query, attention_mask, cu_seqlens)
        if all(run.documents is None for run in runs):
            mark.attachment.require_whole_documents(module)
        with running_layer(mark.layer):
            output = _attend_by_run(attention, query, key, value, runs, scaling)
        # Whether a cache is kept is not told here. Training keeps no state: its forwards may run without
        # gradients, under activation checkpointing, but never in evaluation mode.
        mark.attachment.decoding.pop(mark.layer, None)
        if span is not None and not (module.training or torch.is_grad_enabled()):
            mark.attachment.decoding[mark.layer] = [
                _start_span(mark, span, run, _tokens_of(run, query, key, value), scaling)
                for run in runs
                if run.documents is None  # no cache continues a packed row
            ]
    return output.transpose(1, 2).contiguous(), None


def _refuse_what_would_be_dropped(module: nn.Module, dropout: float, kwargs: dict[str, Any]) -> None:
    layer = type(module).__name__
    if dropout:
        raise ValueError(
            f"{layer} asks for attention dropout {dropout}, which is not supported; set attention_dropout = 0"
        )
    if kwargs.get("is_causal") is False:
        raise ValueError(f"{layer} asks for attention that is not causal")
    for name in _BEYOND_CAUSAL:
        if kwargs.get(name) is not None:
            raise ValueError(f"{layer} asks for {name}={kwargs[name]!r}, which no attention here supports")


def _refuse_beside_a_shard(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    cu_seqlens: DocumentBounds | None,
    shard: SequenceShard,
) -> None:
    layer, own = type(module).__name__, shard.tokens_per_rank
    if (query.shape[2], key.shape[2]) != (own, own):
        raise ValueError(
            f"{layer} has {query.shape[2]} queries and {key.shape[2]} keys; a rank is given its own {own} "
            "tokens of the row, and no cache"
        )
    if cu_seqlens is not None or (mask is not None and mask.dtype == torch.bool):
        raise ValueError(f"{layer}: a shard says itself where documents begin, and its row has no padding")


def _runs(query: Tensor, mask: Tensor | None, documents: DocumentBounds | None) -> list[Run]:
    """Cut the batch into runs without padding.

    mask: None, [B, L] bool (True: a real token) or [B, L] int64 (which document a token belongs to).
    """
    batch, _, length, _ = query.shape
    if mask is not None and mask.shape != (batch, length):
        raise ValueError(
            f"the attention mask must be [B, L] = [{batch}, {length}], got {tuple(mask.shape)}: "
            "masks over pairs are refused"
        )
    if documents is not None and mask is not None and mask.dtype == torch.bool:
        raise ValueError("cu_seqlens and a padding mask together: leave the padding out of a packed row")
    if documents is not None or mask is None:
        return [Run(slice(0, batch), 0, length, documents)]
    return runs_of(mask)


def _tokens_of(run: Run, *tensors: Tensor) -> list[Tensor]:
    return [tensor[run.rows, :, run.start : run.end] for tensor in tensors]


def _attend_by_run(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, runs: list[Run], scale: float | None
) -> Tensor:
    batch, _, length, _ = query.shape
    if len(runs) == 1 and runs[0].rows == slice(0, batch) and (runs[0].start, runs[0].end) == (0, length):
        return attention(query, key, value, scale=scale, cu_seqlens=runs[0].documents)
    output = query.new_zeros(*query.shape[:3], value.shape[3])
    for run in runs:
        q, k, v = _tokens_of(run, query, key, value)
        output[run.rows, :, run.start : run.end] = attention(q, k, v, scale=scale, cu_seqlens=run.documents)
    return output


def _attend_to_cache(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Full attention of the newest Lq tokens to all Lk; for a few new tokens it is linear in Lk anyway."""
    new, total = query.shape[2], key.shape[2]
    visible = None
    if mask is not None and mask.shape != (query.shape[0], total):
        raise ValueError(
            f"the attention mask must cover the cache, [B, Lk] = [{query.shape[0]}, {total}], "
            f"got {tuple(mask.shape)}"
        )
    if new > 1 or mask is not None:
        visible = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
    if visible is not None and mask is not None:
        # Padding sees itself, or its softmax would be over nothing; its output is used by no one.
        tokens = torch.arange(total, device=query.device)
        itself = tokens == tokens[total - new :, None]
        visible = (visible & mask[:, None, None, :]) | itself
    return dense_attention(query, key, value, attn_mask=visible, scale=scale)


def _decodes_with_span(config: AttentionConfig) -> SpanConfig | None:
    return config if isinstance(config, SpanConfig) and config.decoding == "span" else None


def _start_span(
    mark: LayerMark, span: SpanConfig, run: Run, tokens: list[Tensor], scale: float | None
) -> DecodedRun:
    options = span.options(layer=mark.layer, step=mark.attachment.number, scale=scale)
    q, k, v = tokens
    return DecodedRun(run.rows, run.start, start_decoding(q, k, v, options))


def _continue_span(
    mark: LayerMark,
    span: SpanConfig,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Span attention of the newest Lq tokens to all Lk, each row counted from its first real token."""
    attachment, cached = mark.attachment, key.shape[2] - query.shape[2]
    before = {run.rows.start: run for run in attachment.decoding.get(mark.layer, [])}
    output, decoded = query.new_zeros(*query.shape[:3], value.shape[3]), []
    for run in _runs(key, mask, None):
        new = slice(max(0, run.start - cached), max(0, run.end - cached))
        q, (k, v) = query[run.rows, :, new], _tokens_of(run, key, value)
        if run.start >= cached:  # The row was padding alone until now.
            attention = span.bind(layer=mark.layer, step=attachment.number)
            output[run.rows, :, new] = attention(q, k, v, scale=scale)
            decoded.append(_start_span(mark, span, run, [q, k, v], scale))
            continue
        known = before.get(run.rows.start)
        if known is None or (known.rows, known.start) != (run.rows, run.start):
            raise ValueError(
                'decoding="span" goes on from the last forward of the model, in evaluation mode and without '
                'gradients; that one had no such row. Prefill so, or attach with decoding="full"'
            )
        output[run.rows, :, new], state = decode(q, k, v, known.state)
        decoded.append(DecodedRun(run.rows, run.start, state))
    attachment.decoding[mark.layer] = decoded
    return output
