"""Rows that go through a model together: arithmetic only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Fits = Callable[[int, int], bool]
"""Says whether so many rows of so many tokens, padding included, may go together."""


def at_most(tokens: int) -> Fits:
    """Returns what says whether rows have at most so many tokens, their padding included."""
    return lambda rows, longest: rows * longest <= tokens


def batches(lengths: Sequence[int], fits: Fits, *, alike: bool = False) -> list[list[int]]:
    """Cuts rows into batches, the longest first, that fit with their padding.

    Args:
        lengths: tokens of each row.
        fits: see `Fits`; a row that does not fit is a batch by itself.
        alike: only rows of one length share a batch.

    Returns:
        For each batch the positions of its rows in `lengths`, the longest row first.
    """
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[found[-1][0]] if found else 0
        together = found and fits(len(found[-1]) + 1, longest)
        if together and not (alike and lengths[row] != longest):
            found[-1].append(row)
        else:
            found.append([row])
    return found
