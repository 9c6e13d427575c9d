"""Which prompts a worker decodes together, and the most that it keeps of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from pipelines.evaluate.language_model.batches import Fits
from pipelines.evaluate.language_model.cache import CACHE_BYTES, CacheSize

ROWS = 16
"""Enough for one step to cost little more than that of one row, and few enough for all workers to have some,
and for little to be lost with one of them."""


def decoded_together(size: CacheSize) -> Fits:
    """Returns what says whether rows are few enough, and small enough in a cache of this size."""
    fits = size.within(CACHE_BYTES)
    return lambda rows, tokens: rows <= ROWS and fits(rows, tokens)


def room_for(size: CacheSize, lengths: Sequence[int]) -> int:
    """Returns the most bytes that are kept of prompts of these lengths, as they are decoded together.

    Of many short rows a recurrent model may keep more than of a long one.
    """
    ordered = sorted(lengths)
    return max(
        max(
            size.bytes(tokens), min(CACHE_BYTES, size.bytes(tokens, min(ROWS, bisect_right(ordered, tokens))))
        )
        for tokens in set(ordered)
    )
