"""The gated delta rule by the Triton kernels of flash-linear-attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from se_model.recurrence.fla_package import gated_delta_kernels, kda_kernels
from se_model.recurrence.gated_delta.shapes import check_shapes
from se_model.span.documents import DocumentBounds


def delta_rule_library(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: DocumentBounds | None = None,
) -> tuple[Tensor, Tensor]:
    """`delta_rule_naive` by ``chunk_gated_delta_rule``, or by ``chunk_kda`` for a decay of each channel.

    Same arguments and results; K up to 256. The kernels make queries and keys of unit length themselves, take
    products of v's dtype and keep states in float32.

    Raises:
        ValueError: if shapes do not fit together.
    """
    check_shapes(q, k, v, log_decay, beta, initial_state)
    rule = gated_delta_kernels() if log_decay.dim() == 3 else kda_kernels()
    documents = {}
    state = None if initial_state is None else initial_state.float()
    if cu_seqlens is not None:
        # With the bounds on the host too, nothing has to wait for the device.
        documents = {
            "cu_seqlens": cu_seqlens.cu_seqlens(v.device),
            "cu_seqlens_cpu": cu_seqlens.cu_seqlens("cpu"),
        }
        if state is not None:
            others = len(cu_seqlens.bounds) - 2
            state = F.pad(state, (0, 0) * 3 + (0, others))
    o, states = rule(
        q.to(v.dtype),
        k.to(v.dtype),
        v,
        log_decay.float(),
        beta,
        scale=k.shape[3] ** -0.5,
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
        **documents,
    )
    return o, states if cu_seqlens is None else states[-1:]
