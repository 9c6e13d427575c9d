"""The selective scan of Mamba-1 by chunks, a segment of tokens at a time.

Time and memory grow with the length alone: of a segment only the state before it is kept, and its backward
computes it again. Shapes use B batch, L tokens, D channels, G groups of consecutive channels that share B and
C, N state dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from se_model.recurrence.protocol import InitialState
from se_model.recurrence.segments import Gradients, Part, by_segments
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
    groups, state_size = B.shape[2:]
    dtype = torch.promote_types(u.dtype, torch.float32)
    if initial_state is None or callable(initial_state):
        state = u.new_zeros(batch, groups, state_size, u.shape[2] // groups, dtype=dtype)
    else:
        state = by_group(initial_state.to(dtype), groups)
    y, state = by_segments(_Chunks(begins), (u, dt, B, C), (A,), state, size=size)
    final = by_channel(state)
    if callable(initial_state):
        return with_received_state(y, final, initial_state, dt, A, C, documents, size=max(1, size // 2))
    return y, final


def tokens_held(u: Tensor, A: Tensor) -> int:
    """Tokens whose states may be held at once, for u [B, L, D] and A [D, N]."""
    return max(1, min(SEGMENT, HELD // (u.shape[0] * A.numel())))


@dataclass(frozen=True)
class _Chunks:
    """The step of a segment's chunks: inputs are u, dt, B and C, the parameter is A.

    A state is [B, G, N, d], for d channels of a group; begins: bool [L], the tokens before which it is zero.
    """

    begins: Tensor | None

    def forward(self, part: Part) -> tuple[Tensor, Tensor]:
        segment = self._segment(part)
        states = segment.states(part.state)
        return segment.outputs(states).to(part.inputs[0].dtype), states[:, -1]

    def backward(self, part: Part, d_output: Tensor, d_state: Tensor, needed: Sequence[bool]) -> Gradients:
        segment = self._segment(part)
        found = segment.gradients(segment.states(part.state), d_output, d_state)
        return Gradients((found.u, found.dt, found.B, found.C, found.A), found.state)

    def _segment(self, part: Part) -> Segment:
        u, dt, B, C = part.inputs
        (A,) = part.parameters
        begins = None if self.begins is None else self.begins[part.tokens]
        return Segment.of(Inputs(u, dt, A, B, C), dtype=part.state.dtype, begins=begins)


def _begins(documents: DocumentBounds, device: torch.device) -> Tensor:
    """Which tokens begin a document, all but the first: before them the state is zero; bool [L]."""
    begins = documents.position_ids(device)[0] == 0
    begins[0] = False
    return begins
