"""What the forms of the gated delta rule take."""

from __future__ import annotations

from torch import Tensor


def check_shapes(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor | None
) -> None:
    """Refuse inputs of `delta_rule_naive` and `delta_rule_chunked` that do not fit together.

    state: [B, H, K, V].

    Raises:
        ValueError: naming the shapes.
    """
    shapes = (
        f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}, log_decay {list(log_decay.shape)}, "
        f"beta {list(beta.shape)}"
    )
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:2] != q.shape[:2]:
        raise ValueError(f"the delta rule takes q, k [B, L, G, K] and v [B, L, H, V]; got {shapes}")
    batch, length, groups, key_size = q.shape
    heads, value_size = v.shape[2:]
    if length == 0 or groups == 0 or heads % groups:
        raise ValueError(
            f"there must be tokens, and the heads of q and k must divide those of v; got {shapes}"
        )
    per_head = (batch, length, heads)
    if beta.shape != per_head or log_decay.shape not in (per_head, (*per_head, key_size)):
        raise ValueError(
            "beta must be [B, L, H], log_decay [B, L, H] or, with one for each channel of the keys, "
            f"[B, L, H, K]; got {shapes}"
        )
    if state is not None and state.shape != (batch, heads, key_size, value_size):
        expected = [batch, heads, key_size, value_size]
        raise ValueError(f"the initial state must be [B, H, K, V] = {expected}; got {list(state.shape)}")
