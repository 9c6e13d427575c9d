"""Tiny random models of every architecture that attaching and HyLoRA are tried on."""

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from se_model.hybrid import Mamba2HybridConfig
from tests.se_model.sizes import LATENT, MAMBA, SIZES

_DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_GRANITE = {"shared_intermediate_size": 48, "num_local_experts": 2, "num_experts_per_tok": 1}
_OURS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "state_size": 8,
    "mamba_head_dim": 16,
    "ssm_chunk_size": 8,
    "pad_token_id": 0,
}

# By the name that transformers gives an architecture (`model_type`), variants of our own after a hyphen.
CONFIGS: dict[str, PreTrainedConfig] = {
    "mamba2_hybrid": Mamba2HybridConfig(**_OURS, attn_layer_indices=[1]),
    "mamba2_hybrid-untied": Mamba2HybridConfig(
        **_OURS, attn_layer_indices=[1], tie_word_embeddings=False, qkv_bias=True
    ),
    "mamba2_hybrid-ends": Mamba2HybridConfig(**_OURS, attn_layer_indices=[0, 2]),
    "llama": AutoConfig.for_model("llama", **SIZES),
    "qwen3": AutoConfig.for_model("qwen3", **SIZES, head_dim=8),
    "mistral": AutoConfig.for_model("mistral", **SIZES, sliding_window=None),
    "jamba": AutoConfig.for_model(
        "jamba",
        **SIZES,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        num_experts_per_tok=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "bamba": AutoConfig.for_model("bamba", **SIZES, **MAMBA, attn_layer_indices=[1]),
    "zamba": AutoConfig.for_model(
        "zamba",
        **{**SIZES, "num_hidden_layers": 4, "num_key_value_heads": 4},
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        n_mamba_heads=2,
        mamba_d_state=4,
        mamba_dt_rank=4,
        attention_head_dim=16,
        # At the usual range the shared blocks, several maps deep, would hardly show in the logits.
        initializer_range=0.1,
    ),
    "zamba2": AutoConfig.for_model(
        "zamba2",
        **{**SIZES, "num_hidden_layers": 4, "num_key_value_heads": 4},
        # Two blocks of weights for three attention layers: the first serves twice.
        layers_block_type=["mamba", "hybrid", "hybrid", "hybrid"],
        num_mem_blocks=2,
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=16,
        chunk_size=8,
        use_shared_attention_adapter=True,
        adapter_rank=4,
        initializer_range=0.1,
    ),
    "falcon_h1": AutoConfig.for_model("falcon_h1", **SIZES, **MAMBA, head_dim=8, mamba_d_ssm=64),
    "granitemoehybrid": AutoConfig.for_model(
        "granitemoehybrid", **SIZES, **MAMBA, **_GRANITE, layer_types=["mamba", "attention"]
    ),
    "granitemoehybrid-attention": AutoConfig.for_model(
        "granitemoehybrid", **SIZES, **MAMBA, **_GRANITE, layer_types=["attention", "attention"]
    ),
    "nemotron_h": AutoConfig.for_model(
        "nemotron_h",
        **SIZES,
        layers_block_type=["mamba", "attention"],
        head_dim=8,
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=1,
        chunk_size=8,
    ),
    "qwen3_next": AutoConfig.for_model("qwen3_next", **SIZES, **_DELTA_NET, **_EXPERTS, head_dim=8),
    "qwen3_5_text": AutoConfig.for_model("qwen3_5_text", **SIZES, **_DELTA_NET, head_dim=8),
    "olmo_hybrid": AutoConfig.for_model("olmo_hybrid", **SIZES, **_DELTA_NET),
    "lfm2": AutoConfig.for_model(
        "lfm2", **SIZES, layer_types=["conv", "full_attention"], block_multiple_of=8, conv_L_cache=3
    ),
    **{name: AutoConfig.for_model(name, **{**SIZES, **sizes}) for name, sizes in LATENT.items()},
    "minimax-lightning": AutoConfig.for_model(
        "minimax",
        **SIZES,
        layer_types=["linear_attention", "full_attention"],
        num_local_experts=2,
        num_experts_per_tok=1,
        block_size=8,
        head_dim=8,
    ),
}

UNKNOWN = "minimax-lightning"
"""The hybrid whose recurrent layers no class of this package stands in for."""

# The architectures themselves, in the README's order.
ARCHITECTURES = [name for name in CONFIGS if "-" not in name]


def tiny_model(name: str, *, tied: bool | None = None, vocab_size: int | None = None) -> PreTrainedModel:
    """A model by its name in `CONFIGS`; the same weights at every call.

    tied: whether the output head is to be the embeddings; None for what the configuration says, as for
    vocab_size.
    """
    config = copy.deepcopy(CONFIGS[name])
    if vocab_size is not None:
        config.vocab_size = vocab_size
    if tied is not None:
        config.tie_word_embeddings = tied
    torch.manual_seed(11)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
