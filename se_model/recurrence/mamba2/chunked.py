"""The state-space recurrence of Mamba-2 (SSD) by matrix products, a segment of chunks at a time.

Time and memory grow with the length alone: of a segment only the state before it is kept, and its backward
computes it again. Shapes use B batch, L tokens, H heads, P head dimension, G groups of heads that share B and
C, N state dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from se_model.recurrence.chunks import ChunkDocuments
from se_model.recurrence.mamba2.received import with_received_state
from se_model.recurrence.mamba2.segment import Inputs, Segment
from se_model.recurrence.mamba2.shapes import check_shapes
from se_model.recurrence.protocol import InitialState
from se_model.recurrence.segments import Gradients, Part, by_segments
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
    heads, width = x.shape[2:]
    groups, state_size = B.shape[2:]
    dtype = torch.promote_types(x.dtype, torch.float32)
    if initial_state is None or callable(initial_state):
        state = x.new_zeros(batch, groups, state_size, heads // groups, width, dtype=dtype)
    else:
        state = _by_group(initial_state.to(dtype), groups)
    tokens = max(1, SEGMENT // size) * size
    y, state = by_segments(_Chunks(size, documents), (x, dt, B, C), (A,), state, size=tokens)
    final = _by_head(state)
    if callable(initial_state):
        return with_received_state(y, final, initial_state, dt, A, C, bounds)
    return y, final


@dataclass(frozen=True)
class _Chunks:
    """The step of a segment's chunks of ``size`` tokens: inputs are x, dt, B and C, the parameter is A.

    A state is [B, G, N, h, P], for h heads of a group.
    """

    size: int
    documents: ChunkDocuments | None

    def forward(self, part: Part) -> tuple[Tensor, Tensor]:
        segment = self._segment(part)
        states = segment.states(part.state)
        return segment.outputs(states), states[:, -1]

    def backward(self, part: Part, d_output: Tensor, d_state: Tensor, needed: Sequence[bool]) -> Gradients:
        segment = self._segment(part)
        found = segment.gradients(segment.states(part.state), d_output, d_state)
        return Gradients((found.x, found.dt, found.B, found.C, found.A), found.state)

    def _segment(self, part: Part) -> Segment:
        x, dt, B, C = part.inputs
        (A,) = part.parameters
        documents = None
        if self.documents is not None:
            first, end = part.tokens.start // self.size, -(-part.tokens.stop // self.size)
            documents = self.documents.chunks(first, end)
        return Segment.of(Inputs(x, dt, A, B, C), dtype=part.state.dtype, size=self.size, documents=documents)


def _by_group(state: Tensor, groups: int) -> Tensor:
    """[B, H, P, N] -> [B, G, N, h, P]."""
    return state.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3)


def _by_head(state: Tensor) -> Tensor:
    """[B, G, N, h, P] -> [B, H, P, N]."""
    return state.permute(0, 1, 3, 4, 2).flatten(1, 2)
