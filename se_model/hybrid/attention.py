"""The attention mixer."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from se_model.baselines import full_attention
from se_model.hybrid.configuration import Mamba2HybridConfig
from se_model.hybrid.past import Past
from se_model.hybrid.projection import ResidualProjection
from se_model.hybrid.rotary import rotate
from se_model.parallel import SequenceShard
from se_model.parallel.formula import Share, convolution
from se_model.parallel.full import full_attention as parallel_full_attention
from se_model.parallel.volumes import CONVOLUTIONS, Exchanged
from se_model.recurrence import CausalConv1d
from se_model.span.documents import DocumentBounds


class AttentionMixer(nn.Module):
    """in_proj -> (q, k, v); a causal convolution over all three, no activation; RoPE; attention; out_proj.

    Parameters are named and shaped as in mamba_ssm 2.3.2 (modules/mha.py). Attention goes through
    transformers' table under ``config._attn_implementation``, as in transformers' own models.
    """

    is_attention = True
    is_causal = True

    def __init__(self, config: Mamba2HybridConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        width = sum(self.heads) * config.head_dim
        self.in_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.conv1d = None
        if config.attention_conv_kernel:
            self.conv1d = CausalConv1d(width, config.attention_conv_kernel)
        out_width = config.num_attention_heads * config.head_dim
        self.out_proj = ResidualProjection(out_width, config.hidden_size, bias=config.attention_out_bias)

    def forward(
        self,
        x: Tensor,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        padding: Tensor | None = None,
        past: Past | None = None,
        documents: DocumentBounds | None = None,
        shard: SequenceShard | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """x: [B, L, hidden]; rotary: cosines and sines [B, L, rotary_dim / 2]; padding: bool [B, L].

        attention_mask is what the attention function's mask function made; kwargs go to the attention
        function. With a shard, documents are the pieces inside it, and attention reaches beyond. Returns
        [B, L, hidden], and the attention weights where the function gives them.
        """
        batch, length, _ = x.shape
        past = past or Past()
        qkv = self.in_proj(x)
        if padding is not None:
            qkv = qkv.masked_fill(padding[..., None], 0)
        if self.conv1d is not None:
            # What the next token's convolution looks at is what came out of in_proj.
            context, inputs = self.config.attention_conv_kernel - 1, qkv
            qkv = self.conv1d(inputs, past.convolution_state(inputs, context), documents)
            past.keep_convolution_state(inputs, context)
        q, k, v = qkv.unflatten(-1, (-1, self.config.head_dim)).split(self.heads, dim=2)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
        k, v = past.extend(k, v)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        # Only what `attach` registers takes a shard, and documents in any form but a tensor.
        ours = "shard" in inspect.signature(attend).parameters
        if shard is not None and not ours:
            y = parallel_full_attention(q, k, v, shard, scale=self.scaling).transpose(1, 2)
            weights = None
        elif documents is not None and self.config._attn_implementation in _WITHOUT_DOCUMENTS:
            y = full_attention(q, k, v, scale=self.scaling, cu_seqlens=documents).transpose(1, 2)
            weights = None
        else:
            if shard is not None:
                kwargs["shard"] = shard
            elif documents is not None:
                kwargs["cu_seqlens"] = documents if ours else documents.cu_seqlens(x.device)
            y, weights = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.out_proj(y.reshape(batch, length, -1)), weights

    def exchanged(self, share: Share) -> Exchanged:
        """What a rank receives for this layer's convolution where a row is shared."""
        kernel = self.config.attention_conv_kernel
        return {CONVOLUTIONS: convolution(share, channels=self.in_proj.out_features, kernel=kernel)}


# transformers' functions that would attend across documents. Any other is handed cu_seqlens.
_WITHOUT_DOCUMENTS = frozenset({"eager", "sdpa"})


def eager_attention(
    module: AttentionMixer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, for attn_implementation="eager": also returns the weights [B, H, L, K].

    query: [B, H, L, D]; key, value: [B, G, K, D]; attention_mask: additive [B, 1, L, K].
    Returns [B, L, H, D].
    """
    groups = module.num_key_value_groups
    key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights
