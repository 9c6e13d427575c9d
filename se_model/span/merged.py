"""The sdpa backend on a CPU: attention in parts that need no mask, merged by their log-sum-exp.

``parts.py`` says what the parts are, ``partial.py`` computes one. Retrieved keys are gathered again in the
backward, not kept. ``take_part`` and ``give_back_part`` serve any device, and rows on several ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.span.layout import Layout
from se_model.span.partial import attend_part, part_gradients
from se_model.span.parts import Part, cut_into_parts


def attend(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, counts: tuple[int, ...], layout: Layout, scale: float
) -> Tensor:
    """Each chunk's attention over itself and the blocks its choices name (paper, section 3.2).

    q: [B, H, L, D]; k, v: [B, G, L, D]; blocks: int64 [B, G, choices, K], of which choice i uses the first
    ``counts[i]``; all on a CPU. Returns [B, H, L, D].
    """
    out: Tensor = _MergedAttention.apply(q, k, v, blocks, counts, layout, scale)
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
        scale: float,
    ) -> Tensor:
        q, k, v = (with_dense_rows(x) for x in (q, k, v))
        dtype = torch.promote_types(q.dtype, torch.float32)
        out = _new_row(q, dtype)
        normaliser = torch.empty(q.shape[:3], dtype=dtype)
        for part in cut_into_parts(q, layout, counts):
            take_part(part, q, k, v, blocks, out, normaliser, scale)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, blocks, out, normaliser)
        ctx.counts, ctx.layout, ctx.scale = counts, layout, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, blocks, out, normaliser = ctx.saved_tensors
        # A key's gradient is a sum over all parts that see it: kept wide until the last.
        for_q, for_k, for_v = grads = tuple(_new_row(x, normaliser.dtype) for x in (q, k, v))
        for part in cut_into_parts(q, ctx.layout, ctx.counts):
            give_back_part(part, grad, q, k, v, blocks, out, normaliser, ctx.scale, grads)
        return for_q.to(q.dtype), for_k.to(k.dtype), for_v.to(v.dtype), None, None, None, None


# A function each, so that what a call returns is gone before the next one.


def take_part(
    part: Part, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, out: Tensor, normaliser: Tensor, scale: float
) -> None:
    """Takes a part's attention into ``out`` [B, H, L, D] and ``normaliser`` [B, H, L]."""
    queries = part.queries
    given = (queries.batch(q), part.gather(k, blocks), part.gather(v, blocks))
    one, one_normaliser = (queries.unbatch(x) for x in attend_part(*given, causal=part.causal, scale=scale))
    here, here_normaliser = queries.view(out), queries.view(normaliser)
    if part.causal:
        here.copy_(one)
        here_normaliser.copy_(one_normaliser)
    else:
        weight = (one_normaliser - here_normaliser).sigmoid_().unsqueeze(-1)
        here.lerp_(one.to(out.dtype), weight)
        torch.logaddexp(here_normaliser, one_normaliser, out=here_normaliser)


def give_back_part(
    part: Part,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    out: Tensor,
    normaliser: Tensor,
    scale: float,
    totals: tuple[Tensor, ...],
) -> None:
    """Takes a part's gradients into ``totals``, those of q, k and v: [B, H, L, D], [B, G, L, D] twice."""
    queries = part.queries
    given = (queries.batch(grad), queries.batch(q), part.gather(k, blocks), part.gather(v, blocks))
    results = (queries.batch(out), queries.batch(normaliser))
    for_q, for_k, for_v = part_gradients(*given, *results, causal=part.causal, scale=scale)
    if part.causal:
        queries.view(totals[0]).copy_(queries.unbatch(for_q))
    else:
        queries.view(totals[0]).add_(queries.unbatch(for_q))
    part.give_back(totals[1], for_k, blocks)
    part.give_back(totals[2], for_v, blocks)


def with_dense_rows(x: Tensor) -> Tensor:
    """The kernels read any strides but the last dimension's; the backward sees to the gradient's itself."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _new_row(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Unwritten, in the shape of x [B, H, L, D], laid out [B, L, H, D] as what the kernels return."""
    return torch.empty(x.transpose(1, 2).shape, dtype=dtype).transpose(1, 2)
