"""What a state adds that comes to tokens after they were scanned from zero.

The recurrence is linear in its state: y_t = y_t(from zero) + C_t . (exp(A sum over i <= t of dt_i) h0), as
long as t is in the first token's document. So a scan need not wait for other ranks, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from se_model.recurrence.chunks import decay
from se_model.recurrence.segments import DifferentiatedStep, Part, by_segments
from se_model.recurrence.selective_scan.segment import by_channel, by_group
from se_model.span.documents import DocumentBounds


def with_received_state(
    y: Tensor,
    left: Tensor,
    received: Callable[[Tensor, Tensor], Tensor],
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    documents: DocumentBounds | None,
    *,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Adds to a scan from zero what the state before it gives.

    y: [B, L, D] and left: [B, D, N], from zero; received: gives the state before the first token, [B, D, N],
    from ``left`` and the log of what all tokens leave of a state before them, float64 [B, D, N] (as if no
    document began among them); size: tokens for which states are held at once. Returns y and the state behind
    the last token. Kept for backward: dt, A and C, and a state for every ``size`` tokens.
    """
    state = received(left, dt.sum(1, dtype=torch.float64)[..., None] * A.double())
    bounds = (0, y.shape[1]) if documents is None else documents.bounds
    first, groups = bounds[1], C.shape[2]
    inputs = [dt[:, :first], C[:, :first]]
    given, behind = by_segments(
        DifferentiatedStep(_given), inputs, [by_group(A, groups)], by_group(state, groups), size=size
    )
    y = torch.cat([y[:, :first] + given.to(y.dtype), y[:, first:]], dim=1)
    if len(bounds) == 2:
        left = left + by_channel(behind)
    return y, left


def _given(part: Part) -> tuple[Tensor, Tensor]:
    """What a state [B, G, N, d] gives to the tokens behind it, [B, tokens, D], and what they leave of it."""
    dt, C = part.inputs
    (A,) = part.parameters
    state = part.state
    passed = dt.to(torch.float64).cumsum(1).unflatten(-1, (A.shape[0], 1, -1))  # [B, tokens, G, 1, d]
    states = decay(passed.to(state.dtype) * A.to(state.dtype)) * state[:, None]
    return (C.to(state.dtype)[..., None, :] @ states).flatten(2), states[:, -1]
