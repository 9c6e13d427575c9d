"""What every recurrence is handed of the tokens before its own, and what it hands on to those after.

One seam for all cases: nothing came before (one rank, a whole row), a cache holds it (decoding), or other
ranks do (context parallelism). A layer asks and tells; it does not know which case it is in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

InitialState = Tensor | Callable[[Tensor, Tensor], Tensor]
"""The state before the first token, in the shape that its kind of recurrence gives it; or what gives that
state, once told two things: the state that these tokens leave when they start from zero, and the log of what
they leave of a state before them, float64 (as if no document began among them)."""


class Carried(Protocol):
    """What is carried into a layer's first token and out of its last."""

    def convolution_state(self, x: Tensor, context: int) -> Tensor | None:
        """What the convolution of x [B, L, C] looks at before it: [B, W - 1, C] for context W - 1."""
        ...

    def keep_convolution_state(self, x: Tensor, context: int) -> None:
        """Keeps the last of the convolution's inputs x [B, L, C] for the tokens after."""
        ...

    def initial_state(self) -> InitialState | None:
        """The recurrence's state before the first token, or what gives it; None for zeros."""
        ...

    def keep_state(self, state: Tensor) -> None:
        """Keeps the recurrence's state behind the last token."""
        ...
