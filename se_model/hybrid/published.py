"""The folders that state-spaces published: a config.json in mamba_ssm's words beside pytorch_model.bin.

Keys and defaults as in mamba_ssm 2.3.2 (models/config_mamba.py, modules/mamba2.py, modules/mha.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# mamba_ssm's key -> (ours, mamba_ssm's default where the key is absent)
_MODEL_KEYS: dict[str, tuple[str, Any]] = {
    "d_model": ("hidden_size", 2560),
    "n_layer": ("num_hidden_layers", 64),
    "vocab_size": ("vocab_size", 50277),
    "tie_embeddings": ("tie_word_embeddings", True),
    "residual_in_fp32": ("residual_in_fp32", True),
    "attn_layer_idx": ("attn_layer_indices", []),
}
_SSM_KEYS: dict[str, tuple[str, Any]] = {
    "d_state": ("state_size", 128),
    "d_conv": ("conv_kernel", 4),
    "expand": ("expand", 2),
    "headdim": ("mamba_head_dim", 64),
    "ngroups": ("n_groups", 1),
    "A_init_range": ("A_initial_range", (1, 16)),
    "dt_min": ("time_step_min", 0.001),
    "dt_max": ("time_step_max", 0.1),
    "dt_init_floor": ("time_step_floor", 1e-4),
    "dt_limit": ("time_step_limit", None),
    "bias": ("mamba_proj_bias", False),
    "conv_bias": ("conv_bias", True),
}
_ATTENTION_KEYS: dict[str, tuple[str, Any]] = {
    "num_heads": ("num_attention_heads", None),
    "num_heads_kv": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "d_conv": ("attention_conv_kernel", 0),
    "rotary_emb_dim": ("rotary_dim", 0),
    "rotary_emb_base": ("rope_theta", 10000.0),
    "qkv_proj_bias": ("qkv_bias", True),
    "out_proj_bias": ("attention_out_bias", True),
}
# Keys with one value that this model computes: (section, key) -> (that value, mamba_ssm's default)
_FIXED: dict[tuple[str, str], tuple[Any, Any]] = {
    ("", "d_intermediate"): (0, 0),
    ("", "rms_norm"): (True, True),
    ("ssm_cfg", "layer"): ("Mamba2", "Mamba1"),
    ("ssm_cfg", "d_ssm"): (None, None),
    ("ssm_cfg", "D_has_hdim"): (False, False),
    ("ssm_cfg", "rmsnorm"): (True, True),
    ("ssm_cfg", "norm_before_gate"): (False, False),
    ("attn_cfg", "causal"): (True, False),
    ("attn_cfg", "mlp_dim"): (0, 0),
    ("attn_cfg", "softmax_scale"): (None, None),
    ("attn_cfg", "rotary_emb_interleaved"): (False, False),
}
# The sections themselves, what sets the padded vocabulary, and what does not change what the model computes.
_HANDLED = frozenset(
    "ssm_cfg attn_cfg pad_vocab_size_multiple fused_add_norm use_mem_eff_path conv_init chunk_size".split()
)


def is_published_config(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is mamba_ssm's: it names no model_type, but d_model and n_layer."""
    return "model_type" not in raw and {"d_model", "n_layer"} <= raw.keys()


def translate_published_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """mamba_ssm's config.json as the keys of Mamba2HybridConfig.

    Raises:
        ValueError: naming every key that is unknown, or asks for what this model does not compute.
    """
    sections = {"": raw, "ssm_cfg": raw.get("ssm_cfg") or {}, "attn_cfg": raw.get("attn_cfg") or {}}
    tables = {"": _MODEL_KEYS, "ssm_cfg": _SSM_KEYS, "attn_cfg": _ATTENTION_KEYS}
    translated: dict[str, Any] = {}
    problems = []
    for section, given in sections.items():
        prefix = f"{section}." if section else ""
        for key, value in given.items():
            known = key in tables[section] or (section, key) in _FIXED or key in _HANDLED
            if not known:
                problems.append(f"{prefix}{key}: unknown (value {value!r})")
        for (where, key), (served, default) in _FIXED.items():
            if where == section and given.get(key, default) != served:
                problems.append(f"{prefix}{key}: {given.get(key, default)!r}, but only {served!r} is served")
        for key, (ours, default) in tables[section].items():
            translated[ours] = given.get(key, default)
    if translated["num_attention_heads"] is None:
        problems.append("attn_cfg.num_heads: missing")
    translated["vocab_size"] += -translated["vocab_size"] % raw.get("pad_vocab_size_multiple", 8)
    if problems:
        raise ValueError("config.json of state-spaces cannot be read:\n  " + "\n  ".join(problems))
    return translated


def read_published_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a pytorch_model.bin, memory-mapped; nothing but tensors is ever unpickled.

    Raises:
        ValueError: if the file is no torch archive, or holds anything but a dictionary of tensors.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not a plain file of tensors, and no other is read ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors by name")
    return tensors
