"""The state-space recurrence of Mamba-2 (SSD) by matrix products, a segment of chunks at a time.

Time and memory grow with the length alone: of a segment only the state before it is kept, and its backward
computes it again. Shapes use B batch, L tokens, H heads, P head dimension, G groups of heads that share B and
C, N state dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.recurrence.chunks import ChunkDocuments
from se_model.recurrence.mamba2.received import with_received_state
from se_model.recurrence.mamba2.segment import Inputs, Segment
from se_model.recurrence.mamba2.shapes import check_shapes
from se_model.recurrence.protocol import InitialState
from se_model.span.documents import DocumentBounds, Documents

SEGMENT = 1024
"""Tokens of a segment. A state of N P numbers is kept for each: at P = 64 and N = 128 it weighs a twelfth of
its segment's inputs in float32. A segment's own matrices, 3 KB a token and head, are held while it runs."""


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int = 64,
    initial_state: InitialState | None = None,
    cu_seqlens: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd_naive` by matrix products: tokens of a chunk act on each other directly, chunks through states.

    Same arguments and results; any L. ``chunk_size`` (Q) changes the cost only, O(L Q). ``initial_state`` may
    also be a function, where the state before these tokens has to come from elsewhere: see `InitialState`.
    For backward the inputs are kept, and a state for every `SEGMENT` tokens; second derivatives are refused.

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together.
    """
    check_shapes(x, dt, A, B, C, None if callable(initial_state) else initial_state)
    batch, length = x.shape[:2]
    size = min(chunk_size, length)
    bounds = None if cu_seqlens is None else DocumentBounds.of(cu_seqlens, length, batch)
    documents = None if bounds is None else ChunkDocuments.of(bounds, size, x.device)
    if callable(initial_state):
        y, left = _Segments.apply(x, dt, A, B, C, None, size, documents)
        return with_received_state(y, left, initial_state, dt, A, C, bounds)
    return _Segments.apply(x, dt, A, B, C, initial_state, size, documents)


class _Segments(torch.autograd.Function):
    """One segment after another; backward goes from the last to the first, each computed once more."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        initial_state: Tensor | None,
        size: int,
        documents: ChunkDocuments | None,
    ) -> tuple[Tensor, Tensor]:
        batch, _, heads, width = x.shape
        groups, state_size = B.shape[2:]
        dtype = torch.promote_types(x.dtype, torch.float32)
        if initial_state is None:
            state = x.new_zeros(batch, groups, state_size, heads // groups, width, dtype=dtype)
        else:
            state = _by_group(initial_state.to(dtype), groups)
        ctx.size, ctx.documents = size, documents
        ctx.initial_dtype = None if initial_state is None else initial_state.dtype
        y, states = torch.empty_like(x), []
        for tokens, segment in _segments(Inputs(x, dt, A, B, C), dtype, size, documents):
            states.append(state)
            all_states = segment.states(state)
            y[:, tokens] = segment.outputs(all_states)
            state = all_states[:, -1].clone()  # a view would keep all of them
        ctx.save_for_backward(x, dt, A, B, C, *states)
        return y, _by_head(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, *states = ctx.saved_tensors
        dtype = states[0].dtype
        dx, d_dt, dB, dC = (torch.empty_like(tensor) for tensor in (x, dt, B, C))
        dA = torch.zeros_like(A, dtype=torch.float64)
        d_state = _by_group(d_final.to(dtype), B.shape[2])
        inputs = Inputs(x, dt, A, B, C)
        for tokens, segment in _segments(inputs, dtype, ctx.size, ctx.documents, backwards=True):
            found = segment.gradients(segment.states(states.pop()), dy[:, tokens], d_state)
            dx[:, tokens], d_dt[:, tokens], dB[:, tokens], dC[:, tokens] = found.x, found.dt, found.B, found.C
            dA += found.A
            d_state = found.state.clone()
        d_initial = None if ctx.initial_dtype is None else _by_head(d_state).to(ctx.initial_dtype)
        return dx, d_dt, dA.to(A.dtype), dB, dC, d_initial, None, None


def _segments(
    inputs: Inputs,
    dtype: torch.dtype,
    size: int,
    documents: ChunkDocuments | None,
    backwards: bool = False,
) -> Iterator[tuple[slice, Segment]]:
    """Every segment with its tokens, made when it is asked for."""
    length, count = inputs.x.shape[1], max(1, SEGMENT // size)
    chunks = -(-length // size)
    starts = range(0, chunks, count)
    for first in reversed(starts) if backwards else starts:
        end = min(first + count, chunks)
        tokens = slice(first * size, min(end * size, length))
        these = None if documents is None else documents.chunks(first, end)
        yield tokens, Segment.of(inputs.tokens(tokens), dtype=dtype, size=size, documents=these)


def _by_group(state: Tensor, groups: int) -> Tensor:
    """[B, H, P, N] -> [B, G, N, h, P]."""
    return state.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3)


def _by_head(state: Tensor) -> Tensor:
    """[B, G, N, h, P] -> [B, H, P, N]."""
    return state.permute(0, 1, 3, 4, 2).flatten(1, 2)
