"""Rotary position embedding on the first dimensions of each head, halves not interleaved."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(
    position_ids: Tensor, rotary_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The cosines and sines of positions: two [B, L, rotary_dim / 2] for position_ids [B, L].

    Computed anew from the positions in float32 or better: there is no table to outgrow and no buffer to load.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponent = torch.arange(0, rotary_dim, 2, device=position_ids.device, dtype=dtype) / rotary_dim
    angles = position_ids[..., None].to(dtype) * theta**-exponent
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * R of D dimensions and pass on the rest.

    x: [B, L, H, D]; cos, sin: [B, L, R]. Returns [B, L, H, D] in x's dtype.
    """
    half = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = [(first * cos - second * sin).to(x.dtype), (second * cos + first * sin).to(x.dtype), rest]
    return torch.cat(turned, dim=-1)
