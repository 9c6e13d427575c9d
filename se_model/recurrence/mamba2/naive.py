"""The state-space recurrence of Mamba-2, token by token: the oracle of the faster forms.

Per head, with the state h in R^(P x N), a step size dt > 0 and a decay rate A < 0:

    h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t^T,        y_t = h_t C_t

(Dao and Gu, "Transformers are SSMs", arXiv 2405.21060). Shapes use B batch, L tokens, H heads, P head
dimension, G groups of heads that share B and C, N state dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.recurrence.mamba2.shapes import check_shapes
from se_model.span.documents import Documents, document_bounds


def ssd_naive(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, one token after another: the oracle of `ssd_chunked`.

    x: [B, L, H, P]; dt: [B, L, H], positive; A: [H], negative; B, C: [B, L, G, N], G divides H;
    initial_state: [B, H, P, N] (None: zeros); cu_seqlens: [documents + 1] with B = 1: the state starts from
    zero at each document but the first, which starts from ``initial_state``.
    Returns y: [B, L, H, P] and the state after the last token: [B, H, P, N], both in float32 or better, in
    which it computes.

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together.
    """
    check_shapes(x, dt, A, B, C, initial_state)
    dtype = torch.promote_types(x.dtype, torch.float32)
    batch, length, heads, width = x.shape
    share = heads // B.shape[2]
    starts = set(document_bounds(cu_seqlens, length, batch)[1:-1])

    state = x.new_zeros(batch, heads, width, B.shape[3], dtype=dtype)
    if initial_state is not None:
        state = initial_state.to(dtype)
    outputs = []
    for t in range(length):
        if t in starts:
            state = torch.zeros_like(state)
        step = dt[:, t, :, None, None].to(dtype)
        B_t, C_t = (m[:, t].repeat_interleave(share, dim=1).to(dtype)[:, :, None, :] for m in (B, C))
        decay = torch.exp(step * A.to(dtype)[None, :, None, None])
        state = decay * state + step * x[:, t, :, :, None].to(dtype) * B_t
        outputs.append((state * C_t).sum(dim=-1))
    return torch.stack(outputs, dim=1), state
