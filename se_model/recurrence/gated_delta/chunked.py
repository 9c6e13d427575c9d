"""The gated delta rule by matrix products, a segment of chunks at a time.

Time and memory grow with the length alone: of a segment only the state before it is kept, and its backward
computes it again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.recurrence.chunks import ChunkDocuments
from se_model.recurrence.gated_delta.received import with_received_state
from se_model.recurrence.gated_delta.segment import Inputs, segment
from se_model.recurrence.gated_delta.shapes import check_shapes
from se_model.recurrence.protocol import InitialState
from se_model.recurrence.segments import DifferentiatedStep, Part, by_segments
from se_model.span.documents import DocumentBounds, Documents

SEGMENT = 512
"""Tokens of a segment. A state of K V numbers is kept for each: with K = V = 128 it weighs a twelfth of its
segment's inputs in float32. A segment's own matrices, 20 KB a token and head, are held while it runs."""


def delta_rule_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    chunk_size: int = 64,
    initial_state: InitialState | None = None,
    cu_seqlens: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """`delta_rule_naive` by matrix products: tokens of a chunk act on each other directly, chunks by states.

    Same arguments and results; any L. ``chunk_size`` (Q) changes the cost only, O(L Q); with a log decay for
    each channel the next power of two is taken. ``initial_state`` may also be a function, where the state
    before these tokens has to come from elsewhere: see `InitialState`; the scan is then wider by K, and what
    it reads of that state, [B, L, H, K], is kept. For backward the inputs are kept, and a state for every
    `SEGMENT` tokens; second derivatives are refused.

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together.
    """
    check_shapes(q, k, v, log_decay, beta, None if callable(initial_state) else initial_state)
    dtype = torch.promote_types(v.dtype, torch.float32)
    batch, length, heads, value_size = v.shape
    size = min(chunk_size, length)
    if log_decay.dim() == 4:
        size = 1 << (size - 1).bit_length()
    count = max(1, SEGMENT // size)
    documents = None
    if cu_seqlens is not None:
        documents = ChunkDocuments.of(DocumentBounds.of(cu_seqlens, length, batch), size, v.device)

    def step(part: Part) -> tuple[Tensor, Tensor]:
        first = part.tokens.start // size
        these = None if documents is None else documents.chunks(first, first + count)
        o, state = segment(Inputs(*part.inputs), part.state, size=size, documents=these)
        return o.to(v.dtype), state

    def scan(state: Tensor) -> tuple[Tensor, Tensor]:
        inputs = (q, k, v, log_decay, beta)
        return by_segments(DifferentiatedStep(step), inputs, (), state, size=count * size)

    zeros = v.new_zeros(batch, heads, k.shape[3], value_size, dtype=dtype)
    if callable(initial_state):
        return with_received_state(scan, initial_state, zeros)
    return scan(zeros if initial_state is None else initial_state.to(dtype))
