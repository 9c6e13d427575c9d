"""Configurations as they are published, for models on the `meta` device or at tiny width."""

from __future__ import annotations

from typing import Any

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
