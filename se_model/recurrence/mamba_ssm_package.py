"""The one place where the package mamba-ssm enters: its kernels for Mamba-2 (Triton) and Mamba-1 (CUDA).

mamba-ssm 2.2.5 or newer; importing it needs the CUDA extension that it is built with.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.recurrence.mamba2.shapes import check_shapes as check_ssd
from se_model.recurrence.selective_scan.shapes import check_shapes as check_selective_scan
from se_model.span.documents import DocumentBounds


def has_mamba_ssm() -> bool:
    """Whether the package mamba-ssm is installed."""
    return find_spec("mamba_ssm") is not None


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

    ``chunk_size`` must be a power of two. The kernels take products of x's dtype and keep sums, logs of
    decay and the state behind the last document in float32; what they save for backward are the inputs, y
    and one log of decay a token and head.

    Raises:
        ValueError: if shapes do not fit together.
    """
    check_ssd(x, dt, A, B, C, initial_state)
    scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
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


def selective_scan_library(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, cu_seqlens: DocumentBounds | None = None
) -> tuple[Tensor, Tensor]:
    """`selective_scan_naive` from a state of zeros, by mamba-ssm's ``selective_scan_fn``.

    Same arguments but for the state, and the same results; N up to 256. Each document takes a call of its
    own. Sums are float32; inputs are taken in the wider dtype of u and dt, in which the state is given.

    Raises:
        ValueError: if shapes do not fit together.
    """
    check_selective_scan(u, dt, A, B, C, None)
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    dtype, state_size = torch.promote_types(u.dtype, dt.dtype), A.shape[1]
    bounds = (0, u.shape[1]) if cu_seqlens is None else cu_seqlens.bounds
    # The state that the function itself returns has no gradient. Steps of no time behind the last token leave
    # the state as it is: as many as it has numbers, each of which reads one.
    u, dt, B = (F.pad(each, (0, 0) * (each.dim() - 2) + (0, state_size)) for each in (u, dt, B))
    reading = torch.eye(state_size, device=C.device, dtype=C.dtype)[:, None]
    C = torch.cat([C, reading.expand(C.shape[0], -1, *C.shape[2:])], dim=1)
    last = len(bounds) - 2
    outputs = []
    for number, (start, end) in enumerate(pairwise(bounds)):
        tokens = slice(start, end + state_size if number == last else end)
        values, steps = (each[:, tokens].to(dtype).transpose(1, 2) for each in (u, dt))
        inputs, readings = (each[:, tokens].to(dtype).permute(0, 2, 3, 1) for each in (B, C))
        outputs.append(scan(values, steps, A.float(), inputs, readings).transpose(1, 2))
    y, state = torch.cat(outputs, dim=1).split([bounds[-1], state_size], dim=1)
    return y.to(u.dtype), state.transpose(1, 2)
