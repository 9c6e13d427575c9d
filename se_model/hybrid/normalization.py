"""Root-mean-square normalisation, plain and gated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in float32 or better."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size], of any floating dtype. Returns the same shape in the weight's dtype."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        normed = F.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), self.eps)
        return normed.to(self.weight.dtype)


class GatedRMSNorm(nn.Module):
    """rmsnorm(x * silu(gate)), each group of channels by itself; the gate comes first, as in mamba_ssm."""

    def __init__(self, size: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups = groups
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x, gate: [..., size]. Returns the same shape in the weight's dtype."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        gated = x.to(dtype) * F.silu(gate.to(dtype))
        weight = self.weight.to(dtype)
        if self.groups == 1:
            normed = F.rms_norm(gated, weight.shape, weight, self.eps)
        else:
            grouped = gated.unflatten(-1, (self.groups, -1))
            normed = F.rms_norm(grouped, grouped.shape[-1:], None, self.eps).flatten(-2) * weight
        return normed.to(self.weight.dtype)
