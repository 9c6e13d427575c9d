"""The sdpa backend on a CPU: attention in parts that need no mask, merged by their log-sum-exp.

``parts.py`` says what the parts are, ``merge.py`` adds one to the whole. Retrieved keys are gathered again in
the backward, not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.sdpa.merge import add_part_gradients, merge_part
from se_model.span.sdpa.parts import cut_into_parts
from se_model.span.strides import with_dense_rows


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: tuple[int, ...],
    layout: Layout,
    options: SpanOptions,
) -> Tensor:
    """Each chunk's attention over itself and the blocks its choices name (paper, section 3.2).

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv]; blocks: int64 [B, G, choices, K], of which choice i
    uses the first ``counts[i]``; all on a CPU. Returns [B, H, L, Dv].
    """
    out: Tensor = _MergedAttention.apply(q, k, v, blocks, counts, layout, options)
    return out


class _MergedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        blocks: Tensor,
        counts: tuple[int, ...],
        layout: Layout,
        options: SpanOptions,
    ) -> Tensor:
        # The backward kernel itself copies a gradient whose last dimension is strided.
        q, k, v = (with_dense_rows(x) for x in (q, k, v))
        scale = options.scale_for(q.shape[3])
        dtype = torch.promote_types(q.dtype, torch.float32)
        out = _new_row(q, dtype, v.shape[3])
        normaliser = torch.empty(q.shape[:3], dtype=dtype)
        for part in cut_into_parts(q, layout, counts):
            merge_part(part, q, k, v, blocks, out, normaliser, scale)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, blocks, out, normaliser)
        ctx.counts, ctx.layout, ctx.scale = counts, layout, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, blocks, out, normaliser = ctx.saved_tensors
        # A key's gradient is a sum over all parts that see it: kept wide until the last.
        for_q, for_k, for_v = grads = tuple(_new_row(x, normaliser.dtype, x.shape[3]) for x in (q, k, v))
        for part in cut_into_parts(q, ctx.layout, ctx.counts):
            add_part_gradients(part, grad, q, k, v, blocks, out, normaliser, ctx.scale, grads)
        return for_q.to(q.dtype), for_k.to(k.dtype), for_v.to(v.dtype), None, None, None, None


def _new_row(x: Tensor, dtype: torch.dtype, width: int) -> Tensor:
    """Unwritten, [B, H, L, width] for x [B, H, L, any], laid out [B, L, H, width] as kernels return it."""
    return torch.empty(*x.transpose(1, 2).shape[:3], width, dtype=dtype).transpose(1, 2)
