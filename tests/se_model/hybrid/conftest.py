"""A small hybrid with every feature on: two kinds of layers, grouped heads, convolutions, partial RoPE."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from se_model.hybrid import Mamba2HybridConfig, Mamba2HybridForCausalLM

SMALL = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "attn_layer_indices": [1, 3],
    "state_size": 8,
    "mamba_head_dim": 12,
    "n_groups": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "rotary_dim": 6,
    "ssm_chunk_size": 16,
    "initializer_range": 0.5,
}


@pytest.fixture
def small_config() -> Callable[..., Mamba2HybridConfig]:
    """A factory of small configurations; keyword arguments override."""

    def build(**overrides: object) -> Mamba2HybridConfig:
        return Mamba2HybridConfig(**(SMALL | overrides))

    return build


@pytest.fixture
def small_model(small_config) -> Callable[..., Mamba2HybridForCausalLM]:
    """A factory of small models with fixed weights, in float64 and evaluation mode."""

    def build(dtype: torch.dtype = torch.float64, **overrides: object) -> Mamba2HybridForCausalLM:
        torch.manual_seed(0)
        model = Mamba2HybridForCausalLM(small_config(**overrides)).to(dtype).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Ones would hide a missing factor.
                if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
                    parameter.uniform_(0.5, 1.5)
        return model

    return build


@pytest.fixture
def tokens() -> Callable[..., torch.Tensor]:
    """A factory of token ids [B, L]."""

    def draw(batch: int, length: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))

    return draw
