"""What every recurrence is handed of the tokens before its own, and what it hands on to those after.

One seam for all cases: nothing came before (one rank, a whole row), a cache holds it (decoding), or other
ranks do (context parallelism). A layer asks and tells; it does not know which case it is in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

HandOver = Callable[..., Tensor]
"""How a kind of recurrence hands its state from rank to rank: given a rank's shard, and then what the kind
knows of its own tokens, it returns the state before the first of them. All kinds' functions are told the
state that the tokens leave when they start from zero, and what they leave of a state before them: Mamba-1's
and Mamba-2's, `se_model.parallel.state_space.state_before`, the log of a factor per number of the state or
per head; the gated delta rule's, `se_model.parallel.delta_rule.state_before`, a matrix per head."""

InitialState = Tensor | Callable[..., Tensor]
"""The state before the first token, in the shape that its kind of recurrence gives it; or the kind's
hand-over with the shard filled in, to be told of these tokens (as if no document began among them)."""


class Carried(Protocol):
    """What is carried into a layer's first token and out of its last."""

    def convolution_state(self, x: Tensor, context: int) -> Tensor | None:
        """What the convolution of x [B, L, C] looks at before it: [B, W - 1, C] for context W - 1."""
        ...

    def keep_convolution_state(self, x: Tensor, context: int) -> None:
        """Keeps the last of the convolution's inputs x [B, L, C] for the tokens after."""
        ...

    def initial_state(self, hand_over: HandOver) -> InitialState | None:
        """The recurrence's state before the first token, or what gives it; None for zeros.

        hand_over: of this kind of recurrence; asked where other ranks hold what came before.
        """
        ...

    def keep_state(self, state: Tensor) -> None:
        """Keeps the recurrence's state behind the last token."""
        ...
