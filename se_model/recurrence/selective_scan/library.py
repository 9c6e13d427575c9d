"""Mamba-1's selective scan by the CUDA kernel of mamba-ssm."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.recurrence.mamba_ssm_package import selective_scan_function
from se_model.recurrence.selective_scan.shapes import check_shapes
from se_model.span.documents import DocumentBounds


def selective_scan_library(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, cu_seqlens: DocumentBounds | None = None
) -> tuple[Tensor, Tensor]:
    """`selective_scan_naive` from a state of zeros, by mamba-ssm's ``selective_scan_fn``.

    Same arguments but for the state, and the same results; N up to 256. Each document takes a call of its
    own. Sums are float32; inputs are taken in the wider dtype of u and dt, in which the state is given.

    Raises:
        ValueError: if shapes do not fit together.
    """
    check_shapes(u, dt, A, B, C, None)
    scan = selective_scan_function()
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
