"""Exchanges that gradients flow through; each one's backward is its exact adjoint.

Every rank must come to every backward, or the others wait for it forever. So what is received belongs into
the graph of the loss on all ranks, also where it counts for nothing: masked, or times zero, but not left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.parallel.group import ContextParallelGroup


def gather_states(x: Tensor, group: ContextParallelGroup, purpose: str) -> Tensor:
    """Everybody's ``x``, equally shaped on all ranks: [P, *x.shape].

    Backward: each rank gets the sum of all ranks' gradients of its own slice.
    """
    gathered: Tensor = _GatherStates.apply(x, group, purpose)
    return gathered


def receive_left(x: Tensor, group: ContextParallelGroup, shape_in: Sequence[int], purpose: str) -> Tensor:
    """Sends ``x`` to the next rank and returns what the one before sends, of ``shape_in``; zeros on rank 0.

    Backward: the received tensor's gradient goes back to the rank that sent it.
    """
    received: Tensor = _ReceiveLeft.apply(x, group, tuple(shape_in), purpose)
    return received


class _GatherStates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ContextParallelGroup, purpose: str) -> Tensor:
        ctx.group, ctx.purpose = group, purpose
        return group.all_gather(x, purpose=purpose)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.group.reduce_scatter(gradient, purpose=ctx.purpose, direction="backward"), None, None


class _ReceiveLeft(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: ContextParallelGroup, shape_in: tuple[int, ...], purpose: str
    ) -> Tensor:
        ctx.group, ctx.purpose, ctx.sent = group, purpose, x.shape
        received = group.shift_right(x, shape_in, purpose=purpose)
        return x.new_zeros(shape_in) if received is None else received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        returned = ctx.group.shift_left(gradient, ctx.sent, purpose=ctx.purpose, direction="backward")
        return gradient.new_zeros(ctx.sent) if returned is None else returned, None, None, None
