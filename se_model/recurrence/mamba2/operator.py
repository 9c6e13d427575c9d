"""The state-space recurrence of Mamba-2 by any of its backends."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from se_model.recurrence.backends import Library, Recurrence, Request
from se_model.recurrence.mamba2.chunked import ssd_chunked
from se_model.recurrence.mamba2.library import ssd_library
from se_model.recurrence.mamba2.naive import ssd_naive
from se_model.recurrence.mamba2.received import with_received_state
from se_model.recurrence.mamba_ssm_package import has_mamba_ssm
from se_model.recurrence.protocol import InitialState
from se_model.span.documents import DocumentBounds, Documents

MAMBA2 = Recurrence(
    name="Mamba-2",
    library=Library(
        package="mamba-ssm",
        installed=has_mamba_ssm,
        limits=(("chunk_size", lambda size: size & (size - 1) == 0, "chunks of a power of two tokens"),),
    ),
    keeps="its inputs and a state for each 1,024 tokens",
)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int = 64,
    initial_state: InitialState | None = None,
    cu_seqlens: Documents | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`ssd_naive` by the backend that is named, or by the fastest that serves the call.

    Arguments and results are those of `ssd_chunked`; the library's y is in x's dtype. backend: "auto",
    "library", "chunked" or "naive".

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together, or the backend cannot serve the call.
    """
    state = None if callable(initial_state) else initial_state
    request = Request(x.device.type, x.dtype, state is not None, (("chunk_size", chunk_size),))
    name = MAMBA2.resolve(backend, request)
    if name == "chunked":
        return ssd_chunked(
            x, dt, A, B, C, chunk_size=chunk_size, initial_state=initial_state, cu_seqlens=cu_seqlens
        )
    documents = None if cu_seqlens is None else DocumentBounds.of(cu_seqlens, x.shape[1], x.shape[0])
    compute = partial(ssd_library, chunk_size=chunk_size) if name == "library" else ssd_naive
    y, final = compute(x, dt, A, B, C, initial_state=state, cu_seqlens=documents)
    if callable(initial_state):
        return with_received_state(y, final, initial_state, dt, A, C, documents)
    return y, final
