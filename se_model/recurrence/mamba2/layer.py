"""A Mamba-2 layer between its input and its output projection.

Every model's Mamba-2 layer calls `mamba2`, on one rank, on several and while decoding: which it is, only
`Carried` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from se_model.parallel.state_space import state_before
from se_model.recurrence.mamba2.operator import ssd
from se_model.recurrence.protocol import Carried
from se_model.span.documents import DocumentBounds


@dataclass(frozen=True)
class Mamba2Sizes:
    """The numbers of a Mamba-2 layer.

    Attributes:
        heads: H.
        head_size: P.
        groups: G, of heads that share B and C.
        state_size: N.
        kernel: W, tokens that the convolution sees, the present one included.
        chunk_size: tokens that the chunked form handles at once; changes speed and memory only.
    """

    heads: int
    head_size: int
    groups: int
    state_size: int
    kernel: int
    chunk_size: int

    @property
    def inner(self) -> int:
        """Width of x, H P."""
        return self.heads * self.head_size

    @property
    def group_width(self) -> int:
        """Width of B, and of C: G N."""
        return self.groups * self.state_size

    @property
    def channels(self) -> int:
        """Width of the convolution, over x, B and C."""
        return self.inner + 2 * self.group_width


def mamba2(
    inputs: Tensor,
    step: Tensor,
    *,
    A_log: Tensor,
    D: Tensor,
    sizes: Mamba2Sizes,
    convolve: Callable[[Tensor, Tensor | None], Tensor],
    carried: Carried,
    documents: DocumentBounds | None,
    backend: str = "auto",
) -> Tensor:
    """x, B, C = convolve(inputs); y = ssd(x, step, -exp(A_log), B, C) + D x.

    inputs: [B, L, channels], x, B and C side by side before their convolution; step: [B, L, H], positive, in
    float32 or better; A_log, D: [H]; convolve: takes the inputs and what it sees before them, [B, W - 1,
    channels] or None for zeros, and returns [B, L, channels], activated; documents: of these tokens, with B =
    1; None for one; backend: of the recurrence. Returns y: [B, L, H P], in float32 or better.
    """
    context = sizes.kernel - 1
    convolved = convolve(inputs, carried.convolution_state(inputs, context))
    carried.keep_convolution_state(inputs, context)
    x, B, C = convolved.split([sizes.inner, sizes.group_width, sizes.group_width], dim=-1)
    x = x.unflatten(-1, (sizes.heads, sizes.head_size))
    y, state = ssd(
        x,
        step,
        -A_log.to(step.dtype).exp(),
        B.unflatten(-1, (sizes.groups, sizes.state_size)),
        C.unflatten(-1, (sizes.groups, sizes.state_size)),
        chunk_size=sizes.chunk_size,
        initial_state=carried.initial_state(state_before),
        cu_seqlens=documents,
        backend=backend,
    )
    carried.keep_state(state)
    # Of both dtypes' product autograd keeps x as it is.
    return (y + x * D.to(step.dtype)[:, None]).flatten(2)
