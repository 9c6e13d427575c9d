"""Tiny models whose layers ask for more than causal attention: none of them may be silently wrong."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.se_model.sizes import LATENT as SIZES_OF_LATENT
from tests.se_model.sizes import SIZES

_WINDOWS = {
    "sliding_window": 4,
    "head_dim": 8,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}

# By architecture, variants after a hyphen: what its layers ask for, and what makes them ask.
BEYOND: dict[str, tuple[str, dict[str, object]]] = {
    "gemma2": ("sliding windows, soft caps", _WINDOWS),
    "gemma2-uncapped": ("sliding windows", {**_WINDOWS, "attn_logit_softcapping": None}),
    "gemma3_text": ("sliding windows", _WINDOWS),
    "cohere2": ("sliding windows", _WINDOWS),
    "exaone4": ("sliding windows", _WINDOWS),
    "qwen3": (
        "`use_sliding_window` above layer 0",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "head_dim": 8},
    ),
    "gpt_oss": ("sliding windows, attention sinks", {**_WINDOWS, **_EXPERTS}),
    "mistral": ("`sliding_window` set", {"sliding_window": 4}),
    "recurrent_gemma": (
        "sliding windows",
        {"attention_window_size": 4, "block_types": ["recurrent", "attention"], "lru_width": 32},
    ),
    "kimi_linear": ("latent attention", SIZES_OF_LATENT["kimi_linear"]),
    "bailing_hybrid": ("latent attention", SIZES_OF_LATENT["bailing_hybrid"]),
}
# Some of whose layers have a window, and the others ask for nothing.
SOME_WINDOWS = ["gemma2-uncapped", "gemma3_text", "cohere2", "exaone4", "qwen3"]
# All of whose layers have one, by the key that says how wide.
ALL_WINDOWS = {"mistral": "sliding_window", "recurrent_gemma": "attention_window_size"}
LATENT = list(SIZES_OF_LATENT)


def beyond_causal(name: str, implementation: str = "eager", **changes: object) -> PreTrainedModel:
    """The model `name` of `BEYOND`, with `changes` to its configuration; the same weights at every call.

    implementation: of its attention, in transformers.
    """
    config = AutoConfig.for_model(name.partition("-")[0], **{**SIZES, **BEYOND[name][1], **changes})
    torch.manual_seed(11)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
