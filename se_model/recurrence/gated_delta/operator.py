"""The gated delta rule by any of its backends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.recurrence.backends import Library, Recurrence, Request
from se_model.recurrence.fla_package import has_fla
from se_model.recurrence.gated_delta.chunked import delta_rule_chunked
from se_model.recurrence.gated_delta.library import delta_rule_library
from se_model.recurrence.gated_delta.naive import delta_rule_naive
from se_model.recurrence.gated_delta.received import with_received_state
from se_model.recurrence.protocol import InitialState
from se_model.span.documents import DocumentBounds, Documents

GATED_DELTA = Recurrence(
    name="the gated delta rule",
    library=Library(
        package="flash-linear-attention",
        installed=has_fla,
        limits=(("key_size", lambda size: size <= 256, "keys of up to 256 numbers"),),
    ),
    keeps="its inputs and a state for each 512 tokens",
)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    chunk_size: int = 64,
    initial_state: InitialState | None = None,
    cu_seqlens: Documents | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`delta_rule_naive` by the backend that is named, or by the fastest that serves the call.

    Arguments and results are those of `delta_rule_chunked`. backend: "auto", "library", "chunked" or "naive".

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together, or the backend cannot serve the call.
    """
    state = None if callable(initial_state) else initial_state
    key_size = k.shape[3]
    request = Request(v.device.type, v.dtype, state is not None, (("key_size", key_size),))
    name = GATED_DELTA.resolve(backend, request)
    if name == "chunked":
        return delta_rule_chunked(
            q, k, v, log_decay, beta,
            chunk_size=chunk_size, initial_state=initial_state, cu_seqlens=cu_seqlens,
        )  # fmt: skip
    compute = delta_rule_library if name == "library" else delta_rule_naive
    documents = None if cu_seqlens is None else DocumentBounds.of(cu_seqlens, v.shape[1], v.shape[0])
    if not callable(initial_state):
        return compute(q, k, v, log_decay, beta, initial_state=state, cu_seqlens=documents)

    def scan(wide: Tensor) -> tuple[Tensor, Tensor]:
        values = F.pad(v, (0, key_size))
        return compute(q, k, values, log_decay, beta, initial_state=wide, cu_seqlens=documents)

    dtype = torch.promote_types(v.dtype, torch.float32)
    zeros = v.new_zeros(v.shape[0], v.shape[2], key_size, v.shape[3], dtype=dtype)
    return with_received_state(scan, initial_state, zeros)
