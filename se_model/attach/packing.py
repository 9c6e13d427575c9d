"""Whether a model keeps the documents of a packed row apart."""

from __future__ import annotations

from torch import nn

from se_model.loss import unwrap
from se_model.recurrence import decoders


def packing_refusal(model: nn.Module) -> str | None:
    """Why a transformers causal language model cannot take packed documents; None where it can.

    Its modules are enough: the weights may lie on the meta device.
    """
    causal_lm = unwrap(model)
    decoder = getattr(causal_lm, causal_lm.base_model_prefix)
    return decoders.packing_refusal(decoder, type(causal_lm).__name__)
