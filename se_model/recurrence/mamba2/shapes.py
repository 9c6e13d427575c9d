"""What the forms of the Mamba-2 recurrence take."""

from __future__ import annotations

from torch import Tensor


def check_shapes(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> None:
    """Refuse inputs of `ssd_naive` and `ssd_chunked` that do not fit together; state: [B, H, P, N].

    Raises:
        ValueError: naming the shapes.
    """
    shapes = (
        f"x {list(x.shape)}, dt {list(dt.shape)}, A {list(A.shape)}, B {list(B.shape)}, C {list(C.shape)}"
    )
    if x.dim() != 4 or B.dim() != 4:
        raise ValueError(f"the state-space layer takes x [B, L, H, P] and B, C [B, L, G, N]; got {shapes}")
    batch, length, heads, width = x.shape
    groups, state_size = B.shape[2:]
    if length == 0 or dt.shape != x.shape[:3] or A.shape != (heads,) or B.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"dt must be [B, L, H], A [H], B and C [B, L, G, N] for x [B, L, H, P]; got {shapes}"
        )
    if C.shape != B.shape or groups == 0 or heads % groups:
        raise ValueError(f"B and C must be equally shaped, their groups must divide the heads; got {shapes}")
    if state is not None and state.shape != (batch, heads, width, state_size):
        expected = [batch, heads, width, state_size]
        raise ValueError(f"the initial state must be [B, H, P, N] = {expected}; got {list(state.shape)}")
