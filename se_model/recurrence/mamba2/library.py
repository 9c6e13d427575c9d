"""The state-space recurrence of Mamba-2 by the Triton kernels of mamba-ssm."""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.recurrence.mamba2.shapes import check_shapes
from se_model.recurrence.mamba_ssm_package import mamba_chunk_scan
from se_model.span.documents import DocumentBounds


def ssd_library(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int = 256,
    initial_state: Tensor | None = None,
    cu_seqlens: DocumentBounds | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd_naive` by mamba-ssm's ``mamba_chunk_scan_combined``; same arguments and results.

    But y is in x's dtype. ``chunk_size`` must be a power of two. The kernels take products of x's dtype and
    keep sums, logs of decay and the state behind the last document in float32; what they save for backward
    are the inputs, y and one log of decay a token and head.

    Raises:
        ValueError: if shapes do not fit together.
    """
    check_shapes(x, dt, A, B, C, initial_state)
    scan = mamba_chunk_scan()
    # Documents are numbered from 0: number 0 is the one that the kernels give the initial state to.
    documents = None if cu_seqlens is None else cu_seqlens.index(x.device).to(torch.int32)[None]
    y, state = scan(
        x,
        dt.float(),
        A.float(),
        B.to(x.dtype),
        C.to(x.dtype),
        chunk_size,
        initial_states=None if initial_state is None else initial_state.float(),
        seq_idx=documents,
        return_final_states=True,
    )
    return y, state
