"""What goes through a model in the pass that is counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """What one worker runs through the model at once.

    Attributes:
        rows: how many.
        tokens: in each.
        packed: the row holds documents that must not see each other.
    """

    rows: int
    tokens: int
    packed: bool
