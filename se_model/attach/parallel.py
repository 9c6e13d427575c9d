"""Whether a model can run with its rows over several ranks, checked before anything runs."""

from __future__ import annotations

from torch import nn

from se_model.attach.layers import attention_layers, refuse_left_layers
from se_model.attach.marks import MARK, LayerMark
from se_model.loss import unwrap
from se_model.parallel.attention import parallel_attention
from se_model.recurrence.decoders import refuse_without_shards


def check_parallel(model: nn.Module) -> None:
    """Refuses a model with a layer that would see its own rank's tokens only.

    `model` is a transformers causal language model or a `PeftModel` around one, with the attention attached
    that it is to have; where nothing is attached, Mamba-2-Hybrid runs full attention.

    Raises:
        ValueError: naming the layers: recurrent ones that cannot hand on their state, attention that stays
            as it is (a sliding window), that was not attached, or of a kind that has no implementation for
            several ranks.
    """
    causal_lm = unwrap(model)
    refuse_left_layers(causal_lm)
    refuse_without_shards(getattr(causal_lm, causal_lm.base_model_prefix))
    for name, layer in attention_layers(causal_lm):
        mark: LayerMark | None = getattr(layer, MARK, None)
        if mark is None:
            continue
        try:
            parallel_attention(mark.attachment.config.kind)
        except ValueError as refusal:
            raise ValueError(f"{name}: {refusal}") from None
