"""Tiny random models of the architectures that HyLoRA is tried on."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from se_model.hybrid import Mamba2HybridConfig
from tests.se_model.sizes import MAMBA, SIZES

DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
OURS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "attn_layer_indices": [1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "state_size": 8,
    "mamba_head_dim": 16,
    "ssm_chunk_size": 8,
}

CONFIGS = {
    "ours": Mamba2HybridConfig(**OURS),
    "ours-untied": Mamba2HybridConfig(**OURS, tie_word_embeddings=False, qkv_bias=True),
    "llama": AutoConfig.for_model("llama", **SIZES),
    "bamba": AutoConfig.for_model("bamba", **SIZES, **MAMBA, attn_layer_indices=[1]),
    "falcon_h1": AutoConfig.for_model("falcon_h1", **SIZES, **MAMBA, head_dim=8, mamba_d_ssm=64),
    "granitemoehybrid": AutoConfig.for_model(
        "granitemoehybrid",
        **SIZES,
        **MAMBA,
        layer_types=["mamba", "attention"],
        shared_intermediate_size=48,
        num_local_experts=0,
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
    "qwen3_next": AutoConfig.for_model("qwen3_next", **SIZES, **DELTA_NET, **EXPERTS, head_dim=8),
    "olmo_hybrid": AutoConfig.for_model("olmo_hybrid", **SIZES, **DELTA_NET),
    "lfm2": AutoConfig.for_model(
        "lfm2", **SIZES, layer_types=["conv", "full_attention"], block_multiple_of=8, conv_L_cache=3
    ),
    "zamba2": AutoConfig.for_model(
        "zamba2",
        **{**SIZES, "num_hidden_layers": 4},
        layers_block_type=["mamba", "hybrid"] * 2,
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=16,
        num_mem_blocks=1,
        chunk_size=8,
        adapter_rank=4,
    ),
}


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    """Builds a model by its name in CONFIGS; the same weights at every call."""

    def from_name(name: str) -> nn.Module:
        torch.manual_seed(11)
        return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), attn_implementation="sdpa")

    return from_name
