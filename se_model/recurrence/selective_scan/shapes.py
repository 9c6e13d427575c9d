"""What the forms of the selective scan take."""

from __future__ import annotations

from torch import Tensor


def check_shapes(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> None:
    """Refuse inputs of the selective scan that do not fit together; state: [B, D, N].

    Raises:
        ValueError: naming the shapes.
    """
    shapes = (
        f"u {list(u.shape)}, dt {list(dt.shape)}, A {list(A.shape)}, B {list(B.shape)}, C {list(C.shape)}"
    )
    if u.dim() != 3 or A.dim() != 2 or B.dim() != 4:
        raise ValueError(
            f"the selective scan takes u [B, L, D], A [D, N] and B, C [B, L, G, N]; got {shapes}"
        )
    batch, length, channels = u.shape
    state_size = A.shape[1]
    if length == 0 or dt.shape != u.shape or A.shape[0] != channels or B.shape[:2] != u.shape[:2]:
        raise ValueError(
            f"dt must be [B, L, D], A [D, N], B and C [B, L, G, N] for u [B, L, D]; got {shapes}"
        )
    groups = B.shape[2]
    if C.shape != B.shape or B.shape[3] != state_size or groups == 0 or channels % groups:
        raise ValueError(
            "B and C must be equally shaped and as wide as A, their groups must divide the channels; "
            f"got {shapes}"
        )
    if state is not None and state.shape != (batch, channels, state_size):
        expected = [batch, channels, state_size]
        raise ValueError(f"the initial state must be [B, D, N] = {expected}; got {list(state.shape)}")
