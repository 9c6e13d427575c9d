"""The configuration: the published model's sizes, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from se_model.hybrid import Mamba2HybridConfig, Mamba2HybridForCausalLM


def test_defaults_are_mamba2attn_2_7b_to_the_parameter():
    with torch.device("meta"):
        model = Mamba2HybridForCausalLM(Mamba2HybridConfig())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert model.num_parameters() == 2_697_590_880
    assert shapes["backbone.embedding.weight"] == (50288, 2560)
    mamba = "backbone.layers.0.mixer."
    assert {name[len(mamba) :]: shape for name, shape in shapes.items() if name.startswith(mamba)} == {
        "dt_bias": (80,),
        "A_log": (80,),
        "D": (80,),
        "in_proj.weight": (10576, 2560),
        "conv1d.weight": (5376, 1, 4),
        "conv1d.bias": (5376,),
        "norm.weight": (5120,),
        "out_proj.weight": (2560, 5120),
    }
    attention = "backbone.layers.9.mixer."
    assert {
        name[len(attention) :]: shape for name, shape in shapes.items() if name.startswith(attention)
    } == {
        "in_proj.weight": (11520, 2560),
        "conv1d.weight": (11520, 1, 4),
        "conv1d.bias": (11520,),
        "out_proj.weight": (2560, 3840),
    }


def test_a_configuration_survives_its_file(small_config, tmp_path):
    config = small_config(time_step_limit=(0.0, 0.5), eos_token_id=3)
    config.save_pretrained(tmp_path)
    for read in (Mamba2HybridConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(read, Mamba2HybridConfig)
        assert json.loads(read.to_json_string()) == json.loads(config.to_json_string())


def test_auto_model_builds_a_hybrid(small_config):
    assert isinstance(AutoModelForCausalLM.from_config(small_config()), Mamba2HybridForCausalLM)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hiden_size": 24}, "no key 'hiden_size'; did you mean 'hidden_size'"),
        ({"attn_layer_indices": []}, "at least one attention layer"),
        ({"attn_layer_indices": [1, 4]}, r"within 0..3; got \[1, 4\]"),
        ({"attn_layer_indices": [1, 1]}, "distinct"),
        ({"mamba_head_dim": 10}, "must divide expand"),
        ({"n_groups": 3}, "n_groups 3"),
        ({"num_key_value_heads": 3}, "must divide num_attention_heads 4"),
        ({"rotary_dim": 7}, "even"),
        ({"rotary_dim": 12}, r"within 0..10; got 12"),
        ({"conv_kernel": 1}, "at least 2"),
        ({"attention_conv_kernel": 1}, "0 or at least 2"),
        ({"hidden_size": 0}, "hidden_size must be positive; got 0"),
        ({"ssm_chunk_size": -1}, "ssm_chunk_size must be positive"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_by_name(small_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        small_config(**overrides)
