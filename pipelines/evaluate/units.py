"""What an evaluation is cut into: units, each scored by one worker (or one crew of them) in one go.

Which rows make a unit depends on the recipe alone, never on the number of workers, so that every row goes
through the same arithmetic and the scores are the same to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pipelines.evaluate.worker import Worker

Outcome = dict[str, Any]
"""What became of a unit's rows, in order; can be written as JSON. `seconds`: how long that took."""


class Unit(Protocol):
    """Rows that are scored together; can be pickled."""

    @property
    def key(self) -> str:
        """Names it among all units of an evaluation, the same in every run of the recipe; a file's name."""
        ...

    @property
    def count(self) -> int:
        """How many rows it has."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        ...

    def score(self, worker: Worker) -> Outcome:
        """Has the rows scored. Of workers that score a unit together each calls this, to the same outcome."""
        ...


def batches(rows: int, length: int, tokens_per_batch: int) -> list[tuple[int, int]]:
    """Cuts `rows` rows of `length` tokens into batches of at most `tokens_per_batch`, or of one row.

    Returns the number of the first row, and how many follow, of each.
    """
    size = max(1, tokens_per_batch // length)
    return [(first, min(size, rows - first)) for first in range(0, rows, size)]
