"""The mixers compute what the published model's do: checked against independent implementations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as TransformersMamba2Mixer

from se_model.hybrid.attention import AttentionMixer
from se_model.hybrid.mamba2 import Mamba2Mixer
from se_model.hybrid.normalization import GatedRMSNorm
from se_model.hybrid.rotary import rotary_angles
from tests.tolerances import F32, F64_SHORT, within


@pytest.mark.parametrize("length", [1, 15, 16, 17, 70])
@pytest.mark.parametrize(("groups", "limit"), [(1, None), (2, None), (4, None), (2, (0.005, 0.02))])
def test_mamba2_mixer_equals_transformers_outputs_and_every_gradient(small_config, groups, limit, length):
    config = small_config(n_groups=groups, time_step_limit=limit)
    torch.manual_seed(0)
    ours = Mamba2Mixer(config, layer_idx=0)
    theirs = TransformersMamba2Mixer(
        Mamba2Config(
            hidden_size=24, state_size=8, head_dim=12, num_heads=4, expand=2, n_groups=groups, conv_kernel=4,
            chunk_size=16, use_bias=False, use_conv_bias=True, layer_norm_epsilon=1e-5,
            time_step_limit=limit or (0.0, math.inf), num_hidden_layers=1,
        ),
        layer_idx=0,
    )  # fmt: skip
    ours.initialize()
    with torch.no_grad():
        ours.norm.weight.uniform_(0.5, 1.5)
        ours.D.uniform_(0.5, 1.5)
    theirs.load_state_dict(ours.state_dict())

    x = torch.randn(2, length, 24)
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, **within(F32))
    upstream = torch.randn_like(y)
    y.backward(upstream)
    expected.backward(upstream)
    references = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = references[name].grad.abs().max().clamp(min=1)
        difference = (parameter.grad - references[name].grad).abs().max()
        assert difference <= F32 * scale, (name, difference / scale)


def test_gated_norm_gates_first_and_normalises_each_group():
    norm = GatedRMSNorm(6, groups=2, eps=1e-5).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, 7))
    x, gate = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    gated = x * gate * torch.sigmoid(gate)
    halves = [half / (half.square().mean(-1, keepdim=True) + 1e-5).sqrt() for half in gated.split(3, dim=-1)]
    torch.testing.assert_close(norm(x, gate), torch.cat(halves, -1) * norm.weight, rtol=0, atol=F64_SHORT)


def by_hand(mixer: AttentionMixer, x: torch.Tensor) -> torch.Tensor:
    """The attention layer head by head and token by token, RoPE by complex numbers. x: [L, hidden]."""
    config = mixer.config
    qkv = F.linear(x, mixer.in_proj.weight, mixer.in_proj.bias)
    if config.attention_conv_kernel:
        weight, bias = mixer.conv1d.weight, mixer.conv1d.bias
        padded = F.pad(qkv.t()[None], (config.attention_conv_kernel - 1, 0))
        qkv = F.conv1d(padded, weight, bias, groups=weight.shape[0])[0].t()
    size, queries, groups = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    heads = qkv.reshape(len(x), -1, size)

    half = config.rotary_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(
        torch.ones(len(x), half, dtype=torch.float64), torch.arange(len(x))[:, None] * frequency
    )

    def rotated(head: torch.Tensor) -> torch.Tensor:
        turned = torch.complex(head[:, :half], head[:, half : 2 * half]) * turn
        return torch.cat([turned.real, turned.imag, head[:, 2 * half :]], dim=-1)

    outputs = []
    for head in range(queries):
        group = head // (queries // groups)
        q, k = rotated(heads[:, head]), rotated(heads[:, queries + group])
        v = heads[:, queries + groups + group]
        rows = [(q[t] @ k[: t + 1].t() / size**0.5).softmax(-1) @ v[: t + 1] for t in range(len(x))]
        outputs.append(torch.stack(rows))
    return F.linear(torch.cat(outputs, dim=-1), mixer.out_proj.weight, mixer.out_proj.bias)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"attention_conv_kernel": 0},
        {"attention_conv_kernel": 2, "qkv_bias": True, "attention_out_bias": True},
        {"rotary_dim": 0},
        {"rotary_dim": 10, "num_key_value_heads": 4, "rope_theta": 100.0},
        {"num_key_value_heads": 1},
    ],
    ids=str,
)
def test_attention_mixer_equals_attention_by_hand(small_config, overrides, implementation):
    config = small_config(**overrides)
    config._attn_implementation = implementation
    torch.manual_seed(0)
    mixer = AttentionMixer(config, layer_idx=1).double()
    x = torch.randn(1, 13, 24, dtype=torch.float64)
    rotary = None
    if config.rotary_dim:
        rotary = rotary_angles(torch.arange(13)[None], config.rotary_dim, config.rope_theta, x.dtype)
    causal = torch.full((13, 13), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    mask = causal if implementation == "eager" else None
    y, _ = mixer(x, rotary=rotary, attention_mask=mask)
    torch.testing.assert_close(y[0], by_hand(mixer, x[0]), rtol=0, atol=F64_SHORT)
