"""Configurations as they are published, for models on the `meta` device or at tiny width."""

from __future__ import annotations

import io
import json
from typing import Any

import torch

MAMBA2ATTN_2_7B: dict[str, Any] = {
    "d_model": 2560,
    "d_intermediate": 0,
    "n_layer": 64,
    "vocab_size": 50277,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [9, 18, 27, 36, 45, 56],
    "attn_cfg": {
        "causal": True,
        "d_conv": 4,
        "head_dim": 128,
        "num_heads": 30,
        "out_proj_bias": False,
        "qkv_proj_bias": False,
        "rotary_emb_dim": 64,
    },
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}
"""config.json of state-spaces/mamba2attn-2.7b: its weights come as pytorch_model.bin, without a tokenizer."""

MAMBA2ATTN_2_7B_PARAMETERS = 2_697_590_880

MAMBA2ATTN_TINY: dict[str, Any] = {
    **MAMBA2ATTN_2_7B,
    "d_model": 32,
    "n_layer": 3,
    "vocab_size": 512,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16},
    "attn_layer_idx": [1],
    "attn_cfg": {**MAMBA2ATTN_2_7B["attn_cfg"], "head_dim": 16, "num_heads": 2, "rotary_emb_dim": 8},
}
"""The same architecture at tiny width."""


def published_files(configuration: dict[str, Any] = MAMBA2ATTN_TINY) -> dict[str, bytes]:
    """A checkpoint of random weights as state-spaces publish theirs: config.json and pytorch_model.bin."""
    from se_model.hybrid import Mamba2HybridConfig, Mamba2HybridForCausalLM
    from se_model.hybrid.published import translate_published_config

    torch.manual_seed(3)
    model = Mamba2HybridForCausalLM(Mamba2HybridConfig(**translate_published_config(configuration)))
    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    return {"config.json": json.dumps(configuration).encode(), "pytorch_model.bin": weights.getvalue()}
