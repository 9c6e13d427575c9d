"""What a state adds that comes to tokens after they were scanned from zero.

The recurrence is linear in its state: y_t = y_t(from zero) + decay_t (h0 C_t), as long as t is in the first
token's document. So a scan need not wait for other ranks, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from se_model.recurrence.chunks import decay
from se_model.span.documents import DocumentBounds


def with_received_state(
    y: Tensor,
    left: Tensor,
    received: Callable[[Tensor, Tensor], Tensor],
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    documents: DocumentBounds | None,
) -> tuple[Tensor, Tensor]:
    """Adds to a scan from zero what the state before it gives.

    y: [B, L, H, P] and left: [B, H, P, N], from zero; received: gives the state before the first token,
    [B, H, P, N], from ``left`` and the log of what all tokens leave of a state before them, float64 [B, H]
    (as if no document began among them). Returns y and the state behind the last token.
    """
    log_decay = torch.cumsum(dt.double() * A.double(), dim=1)  # [B, L, H]
    state = received(left, log_decay[:, -1])
    bounds = (0, y.shape[1]) if documents is None else documents.bounds
    first = bounds[1]
    # Kept for backward: what it is made of. The products themselves are as large as y.
    given: Tensor = checkpoint(
        _given, state, log_decay[:, :first], C[:, :first], use_reentrant=False, preserve_rng_state=False
    )
    y = torch.cat([y[:, :first] + given.to(y.dtype), y[:, first:]], dim=1)
    if len(bounds) == 2:
        left = left + decay(log_decay[:, -1].to(state.dtype))[..., None, None] * state
    return y, left


def _given(state: Tensor, log_decay: Tensor, C: Tensor) -> Tensor:
    """What a state [B, H, P, N] gives to tokens that decay it by log_decay [B, L, H]: [B, L, H, P]."""
    groups = C.shape[2]
    by_group = state.unflatten(1, (groups, -1)).flatten(2, 3)  # [B, G, heads of a group * P, N]
    product = C.to(state.dtype).transpose(1, 2) @ by_group.transpose(-1, -2)  # [B, G, L, heads * P]
    product = product.unflatten(-1, (-1, state.shape[2])).transpose(1, 2).flatten(2, 3)
    return product * decay(log_decay.to(state.dtype))[..., None]
