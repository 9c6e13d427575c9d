"""Rows that go through a model together: arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence


def batches(lengths: Sequence[int], *, tokens_per_batch: int, alike: bool = False) -> list[list[int]]:
    """Cuts rows into batches, the longest first, of at most `tokens_per_batch` tokens with their padding.

    Args:
        lengths: tokens of each row.
        tokens_per_batch: a row that has more is a batch by itself.
        alike: only rows of one length share a batch.

    Returns:
        For each batch the positions of its rows in `lengths`, the longest row first.
    """
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[found[-1][0]] if found else 0
        fits = found and (len(found[-1]) + 1) * longest <= tokens_per_batch
        if fits and not (alike and lengths[row] != longest):
            found[-1].append(row)
        else:
            found.append([row])
    return found
