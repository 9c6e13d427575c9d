"""Any attention of this package in any transformers causal language model."""

from se_model.attach.attachment import attach, attached, detach, get_step, set_step
from se_model.attach.exchanges import LayerExchange, layer_exchanges
from se_model.attach.layers import attention_layers, left_layers
from se_model.attach.packing import packing_refusal
from se_model.attach.parallel import check_parallel

__all__ = [
    "LayerExchange",
    "attach",
    "attached",
    "attention_layers",
    "check_parallel",
    "detach",
    "get_step",
    "layer_exchanges",
    "left_layers",
    "packing_refusal",
    "set_step",
]
