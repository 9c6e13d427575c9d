"""The selective scan of Mamba-1, token by token: the oracle of the faster forms.

Per channel, with the state h in R^N, a step size dt > 0 and decay rates A < 0 in R^N:

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t,        y_t = C_t . h_t

(Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, algorithm
2 with its simplified discretisation of B). Shapes use B batch, L tokens, D channels, G groups of consecutive
channels that share B and C, N state dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.recurrence.selective_scan.shapes import check_shapes
from se_model.span.documents import Documents, document_bounds


def selective_scan_naive(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, one token after another: the oracle of `selective_scan_chunked`.

    u: [B, L, D]; dt: [B, L, D], positive; A: [D, N], negative; B, C: [B, L, G, N], G divides D;
    initial_state: [B, D, N] (None: zeros); cu_seqlens: [documents + 1] with B = 1: the state starts from zero
    at each document but the first, which starts from ``initial_state``.
    Returns y: [B, L, D] and the state after the last token: [B, D, N]. Computes in float32 or better.

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together.
    """
    check_shapes(u, dt, A, B, C, initial_state)
    dtype = torch.promote_types(u.dtype, torch.float32)
    batch, length, channels = u.shape
    share = channels // B.shape[2]
    starts = set(document_bounds(cu_seqlens, length, batch)[1:-1])

    state = u.new_zeros(batch, channels, A.shape[1], dtype=dtype)
    if initial_state is not None:
        state = initial_state.to(dtype)
    outputs = []
    for t in range(length):
        if t in starts:
            state = torch.zeros_like(state)
        step, u_t = (m[:, t, :, None].to(dtype) for m in (dt, u))
        B_t, C_t = (m[:, t].repeat_interleave(share, dim=1).to(dtype) for m in (B, C))
        state = torch.exp(step * A.to(dtype)) * state + step * B_t * u_t
        outputs.append((state * C_t).sum(dim=-1))
    return torch.stack(outputs, dim=1).to(u.dtype), state
