"""A recurrence computed a segment of tokens at a time, of which backward computes each once more.

What a segment makes on the way lives as long as the segment does. Kept for backward are the inputs and the
state before each segment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Part(NamedTuple):
    """What a segment is computed from.

    Attributes:
        tokens: of the segment.
        inputs: of these tokens, each [B, tokens, ...].
        parameters: whole in every segment.
        state: before the first of the tokens.
    """

    tokens: slice
    inputs: Sequence[Tensor]
    parameters: Sequence[Tensor]
    state: Tensor


class Gradients(NamedTuple):
    """Of a `Part`, in the shapes of that.

    Attributes:
        tensors: of the inputs and then of the parameters; None where none is needed.
        state: of the state before the segment.
    """

    tensors: Sequence[Tensor | None]
    state: Tensor


class Step(Protocol):
    """How a segment is computed, without side effects."""

    def forward(self, part: Part) -> tuple[Tensor, Tensor]:
        """The output [B, tokens, ...] and the state behind the last of the tokens."""
        ...

    def backward(self, part: Part, d_output: Tensor, d_state: Tensor, needed: Sequence[bool]) -> Gradients:
        """What the gradients of both results make of those before.

        needed: whether a gradient is wanted, of each of the inputs and then of each of the parameters.
        """
        ...


@dataclass(frozen=True)
class DifferentiatedStep:
    """A step that autograd differentiates.

    Attributes:
        compute: what `forward` does.
    """

    compute: Callable[[Part], tuple[Tensor, Tensor]]

    def forward(self, part: Part) -> tuple[Tensor, Tensor]:
        """The output and the state behind the last of the tokens."""
        return self.compute(part)

    def backward(self, part: Part, d_output: Tensor, d_state: Tensor, needed: Sequence[bool]) -> Gradients:
        """Computes the segment once more, for autograd to follow."""
        own = [
            each.detach().requires_grad_(need)
            for each, need in zip((*part.inputs, *part.parameters), needed, strict=True)
        ]
        count, before = len(part.inputs), part.state.detach().requires_grad_()
        with torch.enable_grad():
            results = self.compute(Part(part.tokens, own[:count], own[count:], before))
        wanted = [*(each for each in own if each.requires_grad), before]
        found = iter(torch.autograd.grad(results, wanted, (d_output, d_state), materialize_grads=True))
        return Gradients([next(found) if each.requires_grad else None for each in own], next(found))


def by_segments(
    step: Step, inputs: Sequence[Tensor], parameters: Sequence[Tensor], state: Tensor, *, size: int
) -> tuple[Tensor, Tensor]:
    """One segment of ``size`` tokens after another; the last may be shorter.

    step: computes a segment; inputs: each [B, L, ...], cut along L; parameters: whole in every segment;
    state: before the first token. Returns the output [B, L, ...] and the state behind the last token.
    Differentiable once in inputs, parameters and state.
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
        states: list[Tensor] = []
        for tokens in segments:
            states.append(state)
            part = Part(tokens, [each[:, tokens] for each in inputs], parameters, state)
            output, state = step.forward(part)
            if tokens.start == 0:
                y = output.new_empty(output.shape[0], segments[-1].stop, *output.shape[2:])
            y[:, tokens] = output
            del output  # or it would be held beside the next segment
            state = state.clone()  # a view would keep what it is a view of
        ctx.step, ctx.segments, ctx.count = step, segments, count
        ctx.save_for_backward(*tensors, *states)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_state: Tensor) -> tuple[Any, ...]:
        segments: tuple[slice, ...] = ctx.segments
        count: int = ctx.count
        saved = ctx.saved_tensors  # asked for once: activation checkpointing allows no more
        tensors, states = saved[: -len(segments)], list(saved[-len(segments) :])
        inputs, parameters = tensors[:count], tensors[count:]
        needed = ctx.needs_input_grad[4:]
        of_inputs = [
            torch.empty_like(each) if need else None for each, need in zip(inputs, needed, strict=False)
        ]
        of_parameters: list[Tensor | None] = [None] * len(parameters)
        for tokens in reversed(segments):
            part = Part(tokens, [each[:, tokens] for each in inputs], parameters, states.pop())
            found, d_state = ctx.step.backward(part, dy[:, tokens], d_state, needed)
            for whole, part in zip(of_inputs, found, strict=False):
                if whole is not None:
                    whole[:, tokens] = part
            of_parameters = [
                _sum(total, part) if need else None
                for total, part, need in zip(of_parameters, found[count:], needed[count:], strict=True)
            ]
            del found  # as above
            d_state = d_state.clone()
        of_parameters = [
            None if total is None else total.to(each.dtype)
            for total, each in zip(of_parameters, parameters, strict=True)
        ]
        return None, None, None, d_state, *of_inputs, *of_parameters


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    """In the dtype of the parts, float32 at least."""
    part = part.to(torch.promote_types(part.dtype, torch.float32))
    return part if total is None else total + part
