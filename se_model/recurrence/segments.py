"""A recurrence computed a segment of tokens at a time, of which backward computes each once more.

For kinds of recurrence whose chunked form autograd can differentiate: what a segment makes on the way lives
as long as the segment does. Kept for backward are the inputs and the state before each segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Step = Callable[[slice, Sequence[Tensor], Sequence[Tensor], Tensor], tuple[Tensor, Tensor]]
"""(tokens, their inputs, parameters, the state before them) -> (their output, the state behind them)."""


def by_segments(
    step: Step, inputs: Sequence[Tensor], parameters: Sequence[Tensor], state: Tensor, *, size: int
) -> tuple[Tensor, Tensor]:
    """One segment of ``size`` tokens after another; the last may be shorter.

    step: computes a segment, without side effects; inputs: each [B, L, ...], cut along L; parameters: whole
    in every segment; state: before the first token. Returns the output [B, L, ...] and the state behind the
    last token. Differentiable once in inputs, parameters and state.
    """
    length = inputs[0].shape[1]
    segments = tuple(slice(start, min(start + size, length)) for start in range(0, length, size))
    y, final = _BySegments.apply(step, segments, len(inputs), state, *inputs, *parameters)
    return y, final


class _BySegments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, step: Step, segments: tuple[slice, ...], count: int, state: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs, parameters = tensors[:count], tensors[count:]
        states, outputs = [], []
        for tokens in segments:
            states.append(state)
            output, state = step(tokens, [tensor[:, tokens] for tensor in inputs], parameters, state)
            outputs.append(output)
            state = state.clone()  # a view would keep what it is a view of
        ctx.step, ctx.segments, ctx.count = step, segments, count
        ctx.save_for_backward(*tensors, *states)
        return torch.cat(outputs, dim=1), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_state: Tensor) -> tuple[Any, ...]:
        step, segments, count = ctx.step, ctx.segments, ctx.count
        saved = ctx.saved_tensors  # asked for once: activation checkpointing allows no more
        tensors, states = saved[: -len(segments)], list(saved[-len(segments) :])
        needed = ctx.needs_input_grad[4:]
        gradients = [
            # Of parameters: summed over segments, in float32 or better.
            torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32))
            if ordinal >= count
            else torch.empty_like(each)
            for ordinal, each in enumerate(tensors)
        ]
        for tokens in reversed(segments):
            with torch.enable_grad():
                own = [
                    (each[:, tokens] if ordinal < count else each).detach().requires_grad_(needed[ordinal])
                    for ordinal, each in enumerate(tensors)
                ]
                before = states.pop().detach().requires_grad_()
                output, behind = step(tokens, own[:count], own[count:], before)
            wanted = [ordinal for ordinal, need in enumerate(needed) if need]
            *found, d_state = torch.autograd.grad(
                (output, behind),
                [*(own[ordinal] for ordinal in wanted), before],
                (dy[:, tokens], d_state),
                materialize_grads=True,
            )
            for ordinal, gradient in zip(wanted, found, strict=True):
                if ordinal < count:
                    gradients[ordinal][:, tokens] = gradient
                else:
                    gradients[ordinal] += gradient
        of_tensors = (
            gradient.to(each.dtype) if need else None
            for gradient, each, need in zip(gradients, tensors, needed, strict=True)
        )
        return None, None, None, d_state, *of_tensors
