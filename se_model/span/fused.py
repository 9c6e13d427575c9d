"""Backend for GPUs: Triton kernels that read retrieved blocks in place, without copying them.

Kept for the backward pass are the inputs, the choice of blocks, the output and the log-sum-exp. Needs triton;
without a GPU it runs in triton's interpreter (TRITON_INTERPRET=1), as the tests do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.selection.choose import choose_blocks as choose_with_torch
from se_model.span.strides import with_dense_rows
from se_model.span.triton_package import is_interpreting


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

    q: [B, H, L, D]; k, v: [B, G, L, D]; blocks: int64 [B, G, choices, K], ascending, then -1; ``counts`` says
    how many are not -1 and is not needed. Returns [B, H, L, D].
    """
    out: Tensor = _FusedAttention.apply(q, k, v, blocks, layout, options)
    return out


@torch.no_grad()
def choose_blocks(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: SpanOptions) -> Tensor:
    """The ids of the blocks that each choice retrieves; as ``selection.choose.choose_blocks``."""
    from se_model.span.kernels import launch_choice as launch

    width = min(options.top_k, layout.most_candidates)
    if width == 0:
        return torch.empty(*k.shape[:2], layout.choices, 0, dtype=torch.int64, device=k.device)
    if not launch.can_choose(q, layout, options, width):
        return choose_with_torch(q, k, v, layout, options)
    q, k, v = (with_dense_rows(x) for x in (q, k, v))
    with torch.cuda.device_of(q):
        summaries = launch.summarise(q, k, v, layout, options, upcast=_upcast(q))
        if options.sums:
            sums = launch.sum_queries(q, layout, options)
            return launch.choose(sums, summaries, layout, options, k.shape[1], width)
        judges = launch.find_judges(q, layout, options)
        return launch.choose_judged(q, summaries, judges, layout, options, k.shape[1], width)


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, layout: Layout, options: SpanOptions
    ) -> Tensor:
        from se_model.span.kernels import launch

        q, k, v = (with_dense_rows(x) for x in (q, k, v))
        with torch.cuda.device_of(q):
            out, normalisers = launch.attend(q, k, v, blocks, layout, options, upcast=_upcast(q))
        ctx.save_for_backward(q, k, v, blocks, out, normalisers)
        ctx.layout, ctx.options = layout, options
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from se_model.span.kernels import launch

        q, k, v, blocks, out, normalisers = ctx.saved_tensors
        grad = with_dense_rows(grad)
        with torch.cuda.device_of(q):
            deltas = launch.deltas(out, grad)
            given = (q, k, v, grad, normalisers, deltas, blocks, ctx.layout, ctx.options)
            for_q = launch.query_gradients(*given, upcast=_upcast(q))
            for_k, for_v = launch.key_gradients(*given, upcast=_upcast(q))
        return for_q, for_k, for_v, None, None, None


def _upcast(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and is_interpreting()
