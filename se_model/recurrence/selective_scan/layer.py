"""A Mamba-1 layer between its input projection and its gate.

Every model's Mamba-1 layer calls `selective_scan`, on one rank and on several: which it is, only `Carried`
knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from se_model.parallel.state_space import state_before
from se_model.recurrence.protocol import Carried
from se_model.recurrence.selective_scan.operator import scan
from se_model.span.documents import DocumentBounds


@dataclass(frozen=True)
class SelectiveScanSizes:
    """The numbers of a Mamba-1 layer.

    Attributes:
        channels: D.
        groups: G, of consecutive channels that share B and C.
        state_size: N.
        kernel: W, tokens that the convolution sees, the present one included.
    """

    channels: int
    groups: int
    state_size: int
    kernel: int


def selective_scan(
    inputs: Tensor,
    *,
    sizes: SelectiveScanSizes,
    convolve: Callable[[Tensor, Tensor | None], Tensor],
    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    A_log: Tensor,
    carried: Carried,
    documents: DocumentBounds | None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """u = convolve(inputs); dt, B, C = project(u); y = scan(u, dt, -exp(A_log), B, C).

    inputs: [B, L, D]; convolve: takes them and what it sees before them, [B, W - 1, D] or None for zeros, and
    returns [B, L, D], activated; project: gives dt [B, L, D], positive, in float32 or better, and B, C
    [B, L, G, N]; A_log: [D, N]; documents: of these tokens, with B = 1; None for one; backend: of the
    recurrence. Returns u, which layers add to y times their D, and y: both [B, L, D], in the dtype that
    ``convolve`` returns.
    """
    context = sizes.kernel - 1
    u = convolve(inputs, carried.convolution_state(inputs, context))
    carried.keep_convolution_state(inputs, context)
    dt, B, C = project(u)
    y, state = scan(
        u,
        dt,
        -A_log.to(dt.dtype).exp(),
        B,
        C,
        initial_state=carried.initial_state(state_before),
        cu_seqlens=documents,
        backend=backend,
    )
    carried.keep_state(state)
    return u, y
