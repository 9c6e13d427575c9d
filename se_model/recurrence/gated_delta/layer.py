"""A gated delta layer between its input projections and its gate.

Every model's layer of this kind calls `gated_delta_rule`, on one rank, on several and while decoding: which
it is, only `Carried` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from se_model.parallel.delta_rule import state_before
from se_model.recurrence.gated_delta.operator import delta_rule
from se_model.recurrence.protocol import Carried
from se_model.span.documents import DocumentBounds


@dataclass(frozen=True)
class GatedDeltaSizes:
    """The numbers of a gated delta layer.

    Attributes:
        key_heads: G, of queries and keys; each serves H / G consecutive heads of values.
        heads: H.
        key_size: K, of queries and keys.
        value_size: V.
        kernel: W, tokens that the convolution sees, the present one included.
        chunk_size: tokens that the chunked form handles at once; changes speed and memory only.
    """

    key_heads: int
    heads: int
    key_size: int
    value_size: int
    kernel: int
    chunk_size: int

    @property
    def key_width(self) -> int:
        """Width of q, and of k: G K."""
        return self.key_heads * self.key_size

    @property
    def inner(self) -> int:
        """Width of v: H V."""
        return self.heads * self.value_size

    @property
    def channels(self) -> int:
        """Width of the convolution, over q, k and v."""
        return 2 * self.key_width + self.inner


def gated_delta_rule(
    inputs: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    sizes: GatedDeltaSizes,
    convolve: Callable[[Tensor, Tensor | None], Tensor],
    carried: Carried,
    documents: DocumentBounds | None,
    backend: str = "auto",
) -> Tensor:
    """q, k, v = convolve(inputs); o = delta_rule(q, k, v, log_decay, beta).

    inputs: [B, L, channels], q, k and v side by side before their convolution; log_decay: [B, L, H] or
    [B, L, H, K], at most 0, and beta: [B, L, H], in float32 or better; convolve: takes the inputs and what it
    sees before them, [B, W - 1, channels] or None for zeros, and returns [B, L, channels], activated;
    documents: of these tokens, with B = 1; None for one; backend: of the recurrence. Returns o: [B, L, H, V],
    in the dtype that ``convolve`` returns.
    """
    context = sizes.kernel - 1
    convolved = convolve(inputs, carried.convolution_state(inputs, context))
    carried.keep_convolution_state(inputs, context)
    q, k, v = convolved.split([sizes.key_width, sizes.key_width, sizes.inner], dim=-1)
    o, state = delta_rule(
        q.unflatten(-1, (sizes.key_heads, sizes.key_size)),
        k.unflatten(-1, (sizes.key_heads, sizes.key_size)),
        v.unflatten(-1, (sizes.heads, sizes.value_size)),
        log_decay,
        beta,
        chunk_size=sizes.chunk_size,
        initial_state=carried.initial_state(state_before),
        cu_seqlens=documents,
        backend=backend,
    )
    carried.keep_state(state)
    return o
