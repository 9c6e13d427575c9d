"""Tiny models whose layers ask for more than causal attention."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.se_model.sizes import SIZES

WINDOWED: dict[str, dict[str, object]] = {
    "mistral": {},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1, "head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window_pattern": 2},
}


def windowed(name: str, window: int) -> PreTrainedModel:
    """The model `name`, some or all of whose layers see `window` tokens; the same weights at every call."""
    config = AutoConfig.for_model(name, **SIZES, **WINDOWED[name], sliding_window=window)
    torch.manual_seed(11)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
