"""Mamba-1's selective scan by any of its backends."""

from __future__ import annotations

from torch import Tensor

from se_model.recurrence.backends import Library, Recurrence, Request
from se_model.recurrence.mamba_ssm_package import has_mamba_ssm
from se_model.recurrence.protocol import InitialState
from se_model.recurrence.selective_scan.chunked import selective_scan_chunked, tokens_held
from se_model.recurrence.selective_scan.library import selective_scan_library
from se_model.recurrence.selective_scan.naive import selective_scan_naive
from se_model.recurrence.selective_scan.received import with_received_state
from se_model.span.documents import DocumentBounds, Documents

MAMBA1 = Recurrence(
    name="Mamba-1",
    library=Library(
        package="mamba-ssm",
        installed=has_mamba_ssm,
        initial_state=False,
        limits=(("state_size", lambda size: size <= 256, "states of up to 256 numbers"),),
    ),
    keeps="its inputs and a state for at most 512 tokens each",
)


def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial_state: InitialState | None = None,
    cu_seqlens: Documents | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`selective_scan_naive` by the backend that is named, or by the fastest that serves the call.

    Arguments and results are those of `selective_scan_chunked`. backend: "auto", "library", "chunked" or
    "naive".

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together, or the backend cannot serve the call.
    """
    state = None if callable(initial_state) else initial_state
    request = Request(u.device.type, u.dtype, state is not None, (("state_size", A.shape[1]),))
    name = MAMBA1.resolve(backend, request)
    if name == "chunked":
        return selective_scan_chunked(u, dt, A, B, C, initial_state=initial_state, cu_seqlens=cu_seqlens)
    documents = None if cu_seqlens is None else DocumentBounds.of(cu_seqlens, u.shape[1], u.shape[0])
    if name == "library":
        y, final = selective_scan_library(u, dt, A, B, C, cu_seqlens=documents)
    else:
        y, final = selective_scan_naive(u, dt, A, B, C, initial_state=state, cu_seqlens=documents)
    if callable(initial_state):
        size = tokens_held(u, A)
        return with_received_state(y, final, initial_state, dt, A, C, documents, size=size)
    return y, final
