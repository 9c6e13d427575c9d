"""Backend for the CPU: own chunk and retrieved blocks attended apart, then merged by their log-sum-exp.

Neither part needs a mask (the own chunk is causal, the retrieved blocks are wholly visible), so both go
through torch's flash kernel, which returns the log-sum-exp with the output. For normalisers a, b and outputs
x, y of the parts, attention over both is x exp(a - c) + y exp(b - c) with c = log(exp a + exp b); the
kernel's backward, given the merged output and c, yields each part's exact gradients. Keys are gathered again
in the backward, not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.span.layout import Layout, Run
from se_model.span.pieces import batch_pieces, give_back, retrieve, unbatch_pieces, view_run

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, counts: tuple[int, ...], layout: Layout, scale: float
) -> Tensor:
    """Each chunk's attention over itself and the blocks its choices name (paper, section 3.2).

    q: [B, H, L, D]; k, v: [B, G, L, D]; blocks: int64 [B, G, choices, K], of which choice i uses the first
    ``counts[i]``. Returns [B, H, L, D].
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
        q, k, v = (_with_dense_rows(x) for x in (q, k, v))
        dtype = torch.promote_types(q.dtype, torch.float32)
        out = torch.empty(q.shape, dtype=dtype, device=q.device)
        normaliser = torch.empty(q.shape[:3], dtype=dtype, device=q.device)
        for run in layout.chunk_runs():
            own, own_normaliser = _flash(*(batch_pieces(x, run) for x in (q, k, v)), 0.0, True, scale=scale)
            view_run(out, run).copy_(unbatch_pieces(own, run))
            view_run(normaliser, run).copy_(unbatch_pieces(own_normaliser, run))
        for run in _retrieving(layout, counts):
            keys, values = (retrieve(x, blocks, run, layout.block_size) for x in (k, v))
            span, span_normaliser = _flash(batch_pieces(q, run), keys, values, 0.0, False, scale=scale)
            span_normaliser = unbatch_pieces(span_normaliser, run)
            merged = torch.logaddexp(view_run(normaliser, run), span_normaliser)
            view_run(out, run).mul_((view_run(normaliser, run) - merged).exp_().unsqueeze(-1))
            span_weight = (span_normaliser - merged).exp_().unsqueeze(-1)
            view_run(out, run).addcmul_(unbatch_pieces(span, run).to(dtype), span_weight)
            view_run(normaliser, run).copy_(merged)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, blocks, out, normaliser)
        ctx.counts, ctx.layout, ctx.scale = counts, layout, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, blocks, out, normaliser = ctx.saved_tensors
        layout, scale = ctx.layout, ctx.scale
        # The gradients of a key come from its own chunk and from every chunk that retrieved it: summed wide.
        grads = [torch.empty(x.shape, dtype=normaliser.dtype, device=x.device) for x in (q, k, v)]
        for run in layout.chunk_runs():
            given = (batch_pieces(x, run) for x in (grad, q, k, v, out, normaliser))
            for total, part in zip(grads, _flash_backward(*given, 0.0, True, scale=scale), strict=True):
                view_run(total, run).copy_(unbatch_pieces(part, run))
        for run in _retrieving(layout, ctx.counts):
            keys, values = (retrieve(x, blocks, run, layout.block_size) for x in (k, v))
            given_grad, queries, outputs, normalisers = (
                batch_pieces(x, run) for x in (grad, q, out, normaliser)
            )
            for_q, for_keys, for_values = _flash_backward(
                given_grad, queries, keys, values, outputs, normalisers, 0.0, False, scale=scale
            )
            view_run(grads[0], run).add_(unbatch_pieces(for_q, run))
            give_back(grads[1], for_keys, blocks, run, layout.block_size)
            give_back(grads[2], for_values, blocks, run, layout.block_size)
        return *(total.to(x.dtype) for total, x in zip(grads, (q, k, v), strict=True)), None, None, None, None


def _with_dense_rows(x: Tensor) -> Tensor:
    """The kernels read any strides but the last dimension's; the backward sees to the gradient's itself."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _retrieving(layout: Layout, counts: tuple[int, ...]) -> list[Run]:
    return [run for run in layout.choice_runs(counts) if run.retrieved]
