"""Tiny models whose layers ask for more than causal attention: none of them may be silently wrong."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.se_model.sizes import SIZES

_LATENT = {
    "num_key_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
}
# By architecture: what its layers ask for, and the configuration that makes them ask.
BEYOND: dict[str, tuple[str, dict[str, object]]] = {
    "mistral": ("`sliding_window` set", {"sliding_window": 4}),
    "qwen3": (
        "`use_sliding_window`",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "head_dim": 8},
    ),
    "gemma2": ("sliding windows, soft caps", {"sliding_window": 4, "head_dim": 8}),
    "gemma3_text": (
        "sliding windows",
        {"sliding_window": 4, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "recurrent_gemma": (
        "sliding windows",
        {"attention_window_size": 4, "block_types": ["recurrent", "attention"], "lru_width": 32},
    ),
    "kimi_linear": ("latent attention", {**_LATENT, "linear_head_dim": 8, "linear_num_heads": 4}),
    "bailing_hybrid": ("latent attention", {**_LATENT, "head_dim": 8, "first_k_dense_replace": 1}),
}
WINDOWS = {
    "mistral": "sliding_window",
    "qwen3": "sliding_window",
    "gemma2": "sliding_window",
    "gemma3_text": "sliding_window",
    "recurrent_gemma": "attention_window_size",
}


def beyond_causal(name: str, **changes: object) -> PreTrainedModel:
    """The model `name` of `BEYOND`, with `changes` to its configuration; the same weights at every call."""
    config = AutoConfig.for_model(name, **{**SIZES, **BEYOND[name][1], **changes})
    torch.manual_seed(11)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
