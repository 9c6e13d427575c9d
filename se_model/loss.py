"""Cross-entropy over long sequences, without ever holding the `L x vocabulary` logits.

At 131,072 tokens and 50,288 words the float32 logits of one sequence take 26 GB, and their gradient as much
again. Here the output head runs on `chunk_tokens` tokens at a time, under activation checkpointing, so that
only one chunk's logits exist at once, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from se_model.recurrence.decoders import packing_refusal, refuse_without_shards
from se_model.span.documents import DocumentBounds, Documents, document_bounds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from se_model.parallel import SequenceShard

IGNORE_INDEX = -100

Head = Callable[[Tensor], Tensor]


def shift_labels(
    labels: Tensor, cu_seqlens: Documents | None = None, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Move each label to the position that predicts it.

    labels: [B, L], aligned with the input tokens; cu_seqlens: [N + 1] boundaries of the documents of one
    packed row (then B = 1). Returns [B, L]: position t holds label t + 1; the last position of every row
    and of every document holds `ignore_index`.
    """
    if labels.ndim != 2:
        raise ValueError(f"labels must be [B, L], got shape {tuple(labels.shape)}")
    shifted = F.pad(labels[:, 1:], (0, 1), value=ignore_index)
    if cu_seqlens is not None:
        if labels.shape[0] != 1:
            raise ValueError(
                f"cu_seqlens describes one packed row, but labels have {labels.shape[0]} rows: flatten them"
            )
        ends = DocumentBounds.read(cu_seqlens).cu_seqlens(labels.device)[1:]
        shifted = shifted.index_fill(1, ends.long() - 1, ignore_index)
    return shifted


def chunked_cross_entropy(
    hidden: Tensor,
    labels_shifted: Tensor,
    head: Head,
    *,
    chunk_tokens: int = 1024,
    ignore_index: int = IGNORE_INDEX,
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of `head(hidden)` against `labels_shifted`, in float32 or wider.

    hidden: [B, L, E] or [N, E]; labels_shifted: [B, L] or [N], one per hidden vector, as `shift_labels`
    returns; head maps [n, E] to logits [n, vocabulary]. Returns (sum: [] float32, float64 for float64 hidden
    vectors; count of labels that are not `ignore_index`: [] int64). Memory: the logits of `chunk_tokens`
    tokens; the head runs twice per chunk when gradients are on.
    """
    if hidden.shape[:-1] != labels_shifted.shape:
        raise ValueError(
            "one label per hidden vector is needed, "
            f"got hidden {tuple(hidden.shape)} and labels {tuple(labels_shifted.shape)}"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    labels = labels_shifted.reshape(-1)

    def chunk_loss(chunk_hidden: Tensor, chunk_labels: Tensor) -> Tensor:
        logits = head(chunk_hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, chunk_labels, ignore_index=ignore_index, reduction="sum")

    dtype = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=hidden.device)
    # Chunks without a single label run too: under ZeRO-3 every call of the head gathers its weight from all
    # ranks, so the number of calls may depend on the shape only, never on the data.
    chunks = zip(hidden.flatten(0, -2).split(chunk_tokens), labels.split(chunk_tokens), strict=True)
    for chunk_hidden, chunk_labels in chunks:
        if torch.is_grad_enabled():
            total = total + checkpoint(chunk_loss, chunk_hidden, chunk_labels, use_reentrant=False)
        else:
            total = total + chunk_loss(chunk_hidden, chunk_labels)
    return total, (labels != ignore_index).sum()


def packed_position_ids(cu_seqlens: Tensor) -> Tensor:
    """Positions that restart at every document. cu_seqlens: [N + 1] -> [1, L] int64, on the same device."""
    return DocumentBounds.read(cu_seqlens).position_ids(cu_seqlens.device)


def causal_lm_loss(
    model: nn.Module,
    input_ids: Tensor,
    *,
    cu_seqlens: Documents | None = None,
    labels: Tensor | None = None,
    shard: SequenceShard | None = None,
    chunk_tokens: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Next-token loss of a transformers causal language model, or of a `PeftModel` around one.

    input_ids: [B, L]; labels: [B, L], unshifted, default `input_ids`; cu_seqlens: [N + 1] boundaries of the
    documents of one packed row (then B = 1), which no target crosses; as a `DocumentBounds` they cost no
    wait for the device. Returns (loss_sum: [] float32,
    target_count: [] int64): divide by the count summed over everything that makes up one optimizer step.

    shard: this rank's part of the row, under context parallelism. Every rank is given the whole row
    (input_ids, cu_seqlens, labels), runs its own tokens, and returns their loss and count; the sums over
    ranks are the row's, and so is the sum of the parameters' gradients.

    The decoder and the head are run as modules, so that wrappers around either (adapters, ZeRO-3) stay in
    force.

    Raises:
        ValueError: for a model whose logits or loss are more than `head(decoder(x))` in a way not known here,
            for packed documents in a model with recurrent layers that would carry state across them, and for
            a shard of another row or in a model with layers that would not look beyond it.
    """
    causal_lm = unwrap(model)
    if getattr(causal_lm.config, "output_router_logits", False):
        raise ValueError(
            f"{type(causal_lm).__name__} adds a router loss to its own loss (config.output_router_logits); "
            "set it to False to train without"
        )
    documents = None
    if cu_seqlens is not None:
        documents = DocumentBounds.of(cu_seqlens, input_ids.shape[1], input_ids.shape[0])
    targets = shift_labels(input_ids if labels is None else labels, documents)
    if shard is not None:
        targets = targets[:, shard.tokens]
    hidden = last_hidden_states(causal_lm, input_ids, documents, shard)
    return chunked_cross_entropy(hidden, targets, head_of(causal_lm), chunk_tokens=chunk_tokens)


def last_hidden_states(
    causal_lm: PreTrainedModel,
    input_ids: Tensor,
    documents: DocumentBounds | None = None,
    shard: SequenceShard | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """What the output head reads, of input_ids [B, L]: [B, L, E], or of a shard's own tokens [B, n, E].

    attention_mask: [B, L], of rows with padding, whose states mean nothing; the other arguments and the
    errors are those of `causal_lm_loss`.
    """
    decoder = getattr(causal_lm, causal_lm.base_model_prefix)
    arguments: dict[str, Any] = {} if attention_mask is None else {"attention_mask": attention_mask}
    if shard is not None:
        arguments |= _shard_arguments(decoder, input_ids, documents, shard)
        input_ids = input_ids[:, shard.tokens]
    elif documents is not None:
        arguments |= _packing_arguments(decoder, input_ids, documents)
    hidden: Tensor = decoder(input_ids=input_ids, use_cache=False, **arguments).last_hidden_state
    return hidden


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, also out of a `PeftModel` around it.

    Raises:
        ValueError: if it is not a transformers model with a decoder inside.
    """
    # Recognised by its method, so that peft is not imported here.
    inside_adapter: Callable[[], Any] | None = getattr(model, "get_base_model", None)
    causal_lm: Any = model if inside_adapter is None else inside_adapter()
    if not hasattr(causal_lm, getattr(causal_lm, "base_model_prefix", "") or " "):
        raise ValueError(
            f"{type(causal_lm).__name__} is not a transformers causal language model: it names no decoder"
        )
    return causal_lm


def head_of(causal_lm: PreTrainedModel) -> Head:
    """The map from the decoder's last hidden state to logits: the output embedding and what comes after it.

    Raises:
        ValueError: where the architecture does something that is not in the table below.
    """
    output_embeddings = causal_lm.get_output_embeddings()
    if output_embeddings is None:
        raise ValueError(
            f"{type(causal_lm).__name__} has no output embeddings: it is not a causal language model"
        )
    transforms = _logit_transforms(causal_lm.config)

    def head(hidden: Tensor) -> Tensor:
        logits = output_embeddings(hidden)
        for transform in transforms:
            logits = transform(logits)
        return logits

    return head


def _packing_arguments(decoder: nn.Module, input_ids: Tensor, documents: DocumentBounds) -> dict[str, Any]:
    if refusal := packing_refusal(decoder, type(decoder).__name__):
        raise ValueError(f"{refusal}; give it one document per row, or concatenated text without cu_seqlens")
    return {"cu_seqlens": documents, "position_ids": documents.position_ids(input_ids.device)}


def _shard_arguments(
    decoder: nn.Module, input_ids: Tensor, documents: DocumentBounds | None, shard: SequenceShard
) -> dict[str, Any]:
    bounds = document_bounds(documents, input_ids.shape[1], input_ids.shape[0])
    if bounds != shard.bounds:
        raise ValueError(
            f"the shard belongs to a row of {shard.length} tokens with document bounds {shard.bounds}, not "
            f"to this one of {input_ids.shape[1]}: every rank is given the whole row and its cu_seqlens"
        )
    refuse_without_shards(decoder)
    return {"shard": shard, "position_ids": shard.position_ids(input_ids.device)}


def _divide(by: float) -> Head:
    return lambda logits: logits / by


def _multiply(by: float) -> Head:
    return lambda logits: logits * by


def _soft_cap(cap: float) -> Head:
    return lambda logits: torch.tanh(logits / cap) * cap


# What transformers 5.23 does between output embedding and logits, by the configuration key that asks for it.
_LOGIT_TRANSFORMS: dict[str, Callable[[float], Head]] = {
    "logits_scaling": _divide,  # granite, granitemoehybrid, minicpm3
    "logit_scale": _multiply,  # cohere
    "lm_head_multiplier": _multiply,  # falcon_h1
    "final_logit_softcapping": _soft_cap,  # gemma
    "logits_soft_cap": _soft_cap,  # recurrent_gemma
}
# Keys that look alike but act inside a layer, or not at all in a language model's logits.
_NOT_OUTPUT_LOGITS = {
    "attn_logit_softcapping",
    "attention_logit_cap",
    "conf_attention_logit_cap",
    "num_logits_to_keep",
    "output_router_logits",
    "attention_invalid_logits_value",
}


def _logit_transforms(config: PreTrainedConfig) -> list[Head]:
    transforms = []
    for key, value in config.to_dict().items():
        if key in _LOGIT_TRANSFORMS:
            if value is not None:
                transforms.append(_LOGIT_TRANSFORMS[key](value))
        elif "logit" in key and key not in _NOT_OUTPUT_LOGITS and value not in (None, False, 1.0):
            raise ValueError(
                f"what configuration key {key!r} = {value!r} does to the logits is not known here"
            )
    return transforms
