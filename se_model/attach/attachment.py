"""Puts an attention of this package into any transformers causal language model, and takes it out again.

transformers (5.23) lets every attention layer look its function up by name (`AttentionInterface`). One
function and one mask function are registered here; which attention they run, and for which layer, is
written on the layer itself, so that models with different attentions live side by side.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from se_model.attach.inputs import watch_inputs
from se_model.attach.interface import INTERFACE_NAME, forward
from se_model.attach.layers import attention_layers, layers_to_take, left_layers
from se_model.attach.leaving import leave, stop_leaving
from se_model.attach.marks import MARK, Attachment, LayerMark
from se_model.attach.mask import mask_of
from se_model.attach.mixers import choose_backends, replace_mixers, restore_mixers
from se_model.attach.packing import packing_refusal
from se_model.attentions import AttentionConfig
from se_model.loss import unwrap
from se_model.recurrence.backends import check_name

logger = logging.getLogger(__name__)

# Where a model keeps the handles of the hooks on its calls.
_WATCH = "_expansion_span_inputs"

AttentionInterface.register(INTERFACE_NAME, forward)
AttentionMaskInterface.register(INTERFACE_NAME, mask_of)


def attach(model: nn.Module, config: AttentionConfig, *, recurrence: str = "auto") -> nn.Module:
    """Make the attention layers of `model` compute the attention that `config` describes.

    `model` is a transformers causal language model or a `PeftModel` around one; it is changed in place and
    returned. Attaching again replaces the attention. Layers with a sliding window stay as they are, beside
    others that have none: `left_layers` gives them by name, and one line of the log does.

    Exact under 2-D padding masks (either side) and for packed documents, told by `cu_seqlens` or by
    `position_ids` that restart at each. Left-out positions are filled in to count real tokens: the choice
    of blocks depends on absolute positions, through RoPE. With a cache, new tokens attend fully to all
    cached ones, unless `SpanConfig(decoding="span")` says otherwise: then they have what a forward of the
    whole row gives them, provided that the prefill ran in evaluation mode and without gradients, and that
    nothing but new tokens has come to its cache since. The forward refuses masks over pairs, packed documents
    where recurrent layers would run across or layers that stay are not told of them, and attention dropout.

    The recurrent layers that `mixers/` knows are given a class that takes packed documents, and a `shard`:
    part of a row over several ranks. They compute on the backend that `recurrence` names: "auto", "library"
    (kernels of the field), "chunked" or "naive" (`se_model.recurrence.backends`).

    Raises:
        ValueError: if there is no layer to take, or one asks for what no attention here computes (a soft cap,
            attention sinks) or does not let its attention be chosen; names them.
    """
    check_name(recurrence, "recurrence")
    causal_lm = unwrap(model)
    layers, left = layers_to_take(causal_lm), left_layers(causal_lm)
    if attached(causal_lm) is not None:
        detach(causal_lm)
    elif causal_lm.config._attn_implementation == INTERFACE_NAME:
        # Built from the configuration object of an attached model: what this one had, nothing tells.
        causal_lm.set_attn_implementation(None)
    previous = _implementations(causal_lm.config)
    attachment = Attachment(config, previous, leave(causal_lm.get_submodule(name) for name in left))
    causal_lm.set_attn_implementation(INTERFACE_NAME)
    setattr(causal_lm, MARK, attachment)
    replace_mixers(causal_lm, attachment)
    choose_backends(causal_lm, recurrence)
    decoder, refusal = getattr(causal_lm, causal_lm.base_model_prefix), packing_refusal(causal_lm)
    advice = None if refusal is None else f"{refusal}; give it one document per row"
    setattr(causal_lm, _WATCH, watch_inputs(decoder, attachment, advice))
    for ordinal, (name, layer) in enumerate(layers):
        if layer.config._attn_implementation != INTERFACE_NAME:
            detach(model)
            raise ValueError(f"{name} of {type(causal_lm).__name__} does not let its attention be chosen")
        setattr(layer, MARK, LayerMark(attachment, ordinal))
    if left:
        logger.info(
            "%d attention layers of %s stay as they are beside %d that are taken: %s",
            len(left), type(causal_lm).__name__, len(layers),
            ", ".join(f"{name} ({reason})" for name, reason in left.items()),
        )  # fmt: skip
    return model


def detach(model: nn.Module) -> nn.Module:
    """Give `model` the attention back that it had before `attach`. Returns `model`.

    Raises:
        ValueError: if nothing is attached.
    """
    causal_lm = unwrap(model)
    causal_lm.set_attn_implementation(_attachment_of(model).previous)
    _stop_watching(causal_lm)
    stop_leaving(causal_lm)
    restore_mixers(causal_lm)
    for module in (causal_lm, *(layer for _, layer in attention_layers(causal_lm))):
        if hasattr(module, MARK):
            delattr(module, MARK)
    return model


def attached(model: nn.Module) -> AttentionConfig | None:
    """The attention that `attach` put into `model`, or None."""
    attachment = getattr(unwrap(model), MARK, None)
    return None if attachment is None else attachment.config


def set_step(model: nn.Module, step: int) -> None:
    """Give the next forward call of training a number, from which chunk sizes and random blocks are drawn.

    The attached model counts its forward calls in training mode with gradients by itself, from 0 after
    `attach`. The count is in no checkpoint: to go on as if training had not stopped, save `get_step(model)`
    beside the weights and set it again (`TrainerSteps` does that for transformers' `Trainer`). Activation
    checkpointing repeats each call with its own number, however many were made since.

    Raises:
        ValueError: if nothing is attached.
    """
    _attachment_of(model).step = step


def get_step(model: nn.Module) -> int:
    """The number that the next forward call of training has; see `set_step`.

    Raises:
        ValueError: if nothing is attached.
    """
    return _attachment_of(model).step


def _attachment_of(model: nn.Module) -> Attachment:
    attachment: Attachment | None = getattr(unwrap(model), MARK, None)
    if attachment is None:
        raise ValueError(
            f"nothing is attached to {type(unwrap(model)).__name__}: call attach(model, config) first"
        )
    return attachment


def _stop_watching(causal_lm: PreTrainedModel) -> None:
    for handle in getattr(causal_lm, _WATCH, ()):
        handle.remove()
    if hasattr(causal_lm, _WATCH):
        delattr(causal_lm, _WATCH)


def _implementations(config: PreTrainedConfig) -> dict[str, Any]:
    parts = {key: part for key in config.sub_configs if (part := getattr(config, key)) is not None}
    return {"": config._attn_implementation} | {key: _implementations(part) for key, part in parts.items()}
