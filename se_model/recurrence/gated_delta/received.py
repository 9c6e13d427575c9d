"""What a state adds that comes to tokens after they were scanned from zero.

Tokens map the state S before them to S_0 + M S, and token t reads o_t = o_t(from zero) + r_t S: both are
affine in S, with M in R^(K x K) and r_t in R^K for each head. A scan that starts from the identity and writes
zeros finds them, M as its last state and r_t as its outputs. Side by side with the scan from zero it is one
scan, of values and a state wider by K, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def with_received_state(
    scan: Callable[[Tensor], tuple[Tensor, Tensor]],
    received: Callable[[Tensor, Tensor], Tensor],
    zeros: Tensor,
) -> tuple[Tensor, Tensor]:
    """A scan whose initial state comes from elsewhere once its own tokens are scanned.

    scan: takes the state before the first token, [B, H, K, V + K], its values zero beyond V; returns the
    output [B, L, H, V + K] and the state behind the last token; received: gives the state before the first
    token, [B, H, K, V], from S_0 [B, H, K, V] and M [B, H, K, K], which is zero where a document begins among
    the tokens; zeros: the state that S_0 starts from. Returns o [B, L, H, V] and the state behind the last
    token.
    """
    key_size, value_size = zeros.shape[2:]
    identity = torch.eye(key_size, dtype=zeros.dtype, device=zeros.device).expand(*zeros.shape[:2], -1, -1)
    both, last = scan(torch.cat([zeros, identity], dim=-1))
    o, reading = both.split([value_size, key_size], dim=-1)
    left, transition = last.split([value_size, key_size], dim=-1)
    state = received(left, transition)
    # Beyond the first document nothing is read of it: the scan's outputs are zero there.
    given = (reading.to(state.dtype).transpose(1, 2) @ state).transpose(1, 2)
    return o + given.to(o.dtype), left + transition @ state
