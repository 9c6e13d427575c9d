"""Queries and keys of unit length: as the delta rule reads and writes with them."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to the squared length, as transformers 5.23 and flash-linear-attention do."""


def normalized(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """q / (|q| sqrt(K)) and k / |k|, in the dtype given; q, k: [..., K]."""
    return _unit(q) * q.shape[-1] ** -0.5, _unit(k)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + EPSILON)
