"""The gated delta rule, token by token: the oracle of the faster forms.

Per head, with the state S in R^(K x V), a log decay g <= 0 and a rate of writing beta:

    S <- Diag(exp(g_t)) S_(t-1),     S_t = S + k_t (beta_t (v_t - S^T k_t))^T,     o_t = S_t^T q_t

where k is of unit length, and q too, divided by sqrt(K). g is one number for a head (Yang, Kautz and
Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464: Qwen3-Next, OLMo-Hybrid) or one for each channel of its
keys (Kimi Delta Attention, "Kimi Linear", arXiv 2510.26692: Kimi-Linear, Bailing). Shapes use B batch, L
tokens, H heads, G heads of queries and keys, K and V dimensions of a head's keys and values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.recurrence.gated_delta.normalized import normalized
from se_model.recurrence.gated_delta.shapes import check_shapes
from se_model.span.documents import Documents, document_bounds


def delta_rule_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, one token after another: the oracle of `delta_rule_chunked`.

    q, k: [B, L, G, K], of any length, G divides H: consecutive heads share one; v: [B, L, H, V]; log_decay:
    [B, L, H], or [B, L, H, K] for one per channel, at most 0; beta: [B, L, H], 0 to 1, or to 2 where states
    may change their sign; initial_state: [B, H, K, V] (None: zeros); cu_seqlens: [documents + 1] with B = 1:
    the state starts from zero at each document but the first, which starts from ``initial_state``.
    Returns o: [B, L, H, V] and the state after the last token: [B, H, K, V]. Computes in float32 or better.

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together.
    """
    check_shapes(q, k, v, log_decay, beta, initial_state)
    dtype = torch.promote_types(v.dtype, torch.float32)
    batch, length, heads, value_size = v.shape
    starts = set(document_bounds(cu_seqlens, length, batch)[1:-1])
    share = heads // q.shape[2]
    queries, keys = normalized(*(x.to(dtype).repeat_interleave(share, dim=2) for x in (q, k)))
    log_decay = log_decay.view(batch, length, heads, -1).to(dtype)

    state = v.new_zeros(batch, heads, k.shape[3], value_size, dtype=dtype)
    if initial_state is not None:
        state = initial_state.to(dtype)
    outputs = []
    for t in range(length):
        if t in starts:
            state = torch.zeros_like(state)
        state = state * log_decay[:, t, :, :, None].exp()
        key = keys[:, t, :, :, None]
        told = v[:, t].to(dtype) - (state * key).sum(dim=2)
        state = state + key * (beta[:, t, :, None].to(dtype) * told)[:, :, None]
        outputs.append((state * queries[:, t, :, :, None]).sum(dim=2))
    return torch.stack(outputs, dim=1).to(v.dtype), state
