"""Backend for tensors without memory (device `meta`): shapes, and what the kernels would keep, no values.

For the backward pass the kernels of every backend but the naive one keep their inputs, the choice of blocks,
the output and one number per query (``sdpa/merged_parts.py``, ``fused.py``, torch's own attention).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.span.layout import Layout
from se_model.span.options import SpanOptions


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: tuple[int, ...],
    layout: Layout,
    options: SpanOptions,
) -> Tensor:
    """An output without values. q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv]. Returns [B, H, L, Dv]."""
    out: Tensor = _Outline.apply(q, k, v, blocks)
    return out


def attend_densely(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` where there are no blocks: torch's own attention. Keys may be more or fewer than queries."""
    out: Tensor = _Outline.apply(q, k, v, q.new_empty(0))
    return out


def choose_blocks(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    """A choice without values: int64 [B, G, choices, min(top_k, most_candidates)]."""
    width = min(options.top_k, layout.most_candidates)
    return torch.empty(*k.shape[:2], layout.choices, width, dtype=torch.int64, device=k.device)


class _Outline(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        normaliser = torch.empty(
            q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device
        )
        ctx.save_for_backward(q, k, v, blocks, out, normaliser)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, _, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None
