"""The selective scan of Mamba-1 by chunks, a segment of tokens at a time.

Time and memory grow with the length alone: of a segment only the state before it is kept, and its backward
computes it again. Shapes use B batch, L tokens, D channels, G groups of consecutive channels that share B and
C, N state dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.recurrence.protocol import InitialState
from se_model.recurrence.selective_scan.received import with_received_state
from se_model.recurrence.selective_scan.segment import Inputs, Segment, by_channel, by_group
from se_model.recurrence.selective_scan.shapes import check_shapes
from se_model.span.documents import DocumentBounds, Documents

SEGMENT = 512
"""Tokens of a segment at most. A state of N numbers a channel is kept for each."""

HELD = 2**23
"""Numbers of a segment's states at most. Its states and decays are held while it runs, 64 MB in float32. In
Jamba's layers (D = 8,192, N = 16) these are 64 tokens, and their kept state weighs an eighth of u and dt."""


def selective_scan_chunked(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial_state: InitialState | None = None,
    cu_seqlens: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """`selective_scan_naive` for the tokens of several chunks at once.

    Same arguments and results; any L. ``initial_state`` may also be a function, where the state before these
    tokens has to come from elsewhere: see `InitialState`. For backward the inputs are kept, and a state for
    every segment; second derivatives are refused.

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together.
    """
    check_shapes(u, dt, A, B, C, None if callable(initial_state) else initial_state)
    batch, length = u.shape[:2]
    documents = None if cu_seqlens is None else DocumentBounds.of(cu_seqlens, length, batch)
    begins = None if documents is None else _begins(documents, u.device)
    size = tokens_held(u, A)
    if callable(initial_state):
        y, left = _Segments.apply(u, dt, A, B, C, None, size, begins)
        return with_received_state(y, left, initial_state, dt, A, C, documents, size=max(1, size // 2))
    return _Segments.apply(u, dt, A, B, C, initial_state, size, begins)


def tokens_held(u: Tensor, A: Tensor) -> int:
    """Tokens whose states may be held at once, for u [B, L, D] and A [D, N]."""
    return max(1, min(SEGMENT, HELD // (u.shape[0] * A.numel())))


class _Segments(torch.autograd.Function):
    """One segment after another; backward goes from the last to the first, each computed once more."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        initial_state: Tensor | None,
        size: int,
        begins: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        batch, _, channels = u.shape
        groups, state_size = B.shape[2:]
        dtype = torch.promote_types(u.dtype, torch.float32)
        if initial_state is None:
            state = u.new_zeros(batch, groups, state_size, channels // groups, dtype=dtype)
        else:
            state = by_group(initial_state.to(dtype), groups)
        ctx.size, ctx.begins = size, begins
        ctx.initial_dtype = None if initial_state is None else initial_state.dtype
        y, kept = torch.empty_like(u), []
        for tokens, segment in _segments(Inputs(u, dt, A, B, C), dtype, size, begins):
            kept.append(state)
            states = segment.states(state)
            y[:, tokens] = segment.outputs(states)
            state = states[:, -1].clone()  # a view would keep all of them
        ctx.save_for_backward(u, dt, A, B, C, *kept)
        return y, by_channel(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, A, B, C, *kept = ctx.saved_tensors
        dtype, groups = kept[0].dtype, B.shape[2]
        du, d_dt, dB, dC = (torch.empty_like(tensor) for tensor in (u, dt, B, C))
        dA = torch.zeros_like(A, dtype=torch.float64)
        d_state = by_group(d_final.to(dtype), groups)
        inputs = Inputs(u, dt, A, B, C)
        for tokens, segment in _segments(inputs, dtype, ctx.size, ctx.begins, backwards=True):
            found = segment.gradients(segment.states(kept.pop()), dy[:, tokens], d_state)
            du[:, tokens], d_dt[:, tokens], dB[:, tokens], dC[:, tokens] = found.u, found.dt, found.B, found.C
            dA += found.A
            d_state = found.state
        d_initial = None if ctx.initial_dtype is None else by_channel(d_state).to(ctx.initial_dtype)
        return du, d_dt, dA.to(A.dtype), dB, dC, d_initial, None, None


def _segments(
    inputs: Inputs, dtype: torch.dtype, size: int, begins: Tensor | None, backwards: bool = False
) -> Iterator[tuple[slice, Segment]]:
    """Every segment with its tokens, made when it is asked for."""
    starts = range(0, inputs.u.shape[1], size)
    for start in reversed(starts) if backwards else starts:
        tokens = slice(start, min(start + size, inputs.u.shape[1]))
        here = None if begins is None else begins[tokens]
        yield tokens, Segment.of(inputs.tokens(tokens), dtype=dtype, begins=here)


def _begins(documents: DocumentBounds, device: torch.device) -> Tensor:
    """Which tokens begin a document, all but the first: before them the state is zero; bool [L]."""
    begins = documents.position_ids(device)[0] == 0
    begins[0] = False
    return begins
