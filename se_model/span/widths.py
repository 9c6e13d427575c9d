"""Attention whose values are not as wide as its queries and keys, by kernels that want them equal.

Latent attention (Kimi Linear, Bailing, DeepSeek) has queries and keys of width D and values of width Dv.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def equally_wide(*tensors: Tensor) -> list[Tensor]:
    """The tensors [..., any] with zeros behind all but the widest: [..., most].

    Zeros behind queries and keys add nothing to their products, zeros behind values are zeros of the output.
    """
    width = max(x.shape[-1] for x in tensors)
    return [x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in tensors]


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """torch's ``scaled_dot_product_attention``, its fast kernels (torch 2.13) for any width of the values.

    q: [B, H, Lq, D]; k: [B, G, Lk, D]; v: [B, G, Lk, Dv], G divides H. Returns [B, H, Lq, Dv]. ``scale`` is
    D ** -0.5 by default.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries, keys, values = equally_wide(q, k, v)
    out = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[..., : v.shape[-1]]
