"""Which prompts a worker decodes together, and the most that it keeps of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from pipelines.evaluate.language_model.batches import Fits, batches
from pipelines.evaluate.language_model.cache import CACHE_BYTES, CacheSize
from pipelines.evaluate.language_model.encode import Prompt

ROWS = 16
"""Enough for one step to cost little more than that of one row, and few enough for many workers to have some,
and for little to be lost with one of them."""


def decoded_together(size: CacheSize) -> Fits:
    """Returns what says whether rows are few enough, and small enough in a cache of this size."""
    fits = size.within(CACHE_BYTES)
    return lambda rows, tokens: rows <= ROWS and fits(rows, tokens)


def shares(prompts: Sequence[Prompt], fits: Fits) -> list[list[int]]:
    """Cuts prompts into those that are decoded together, by their positions.

    All of a share may have as many new tokens: so the longest row is as long as the cache can become.
    """
    found: list[list[int]] = []
    for new in dict.fromkeys(prompt.max_new_tokens for prompt in prompts):
        rows = [row for row, prompt in enumerate(prompts) if prompt.max_new_tokens == new]
        together = batches([prompts[row].tokens for row in rows], fits)
        found += [[rows[place] for place in share] for share in together]
    return found


def room_for(size: CacheSize, lengths: Sequence[int]) -> int:
    """Returns the most bytes that are kept of prompts of these lengths, as they are decoded together.

    Of many short rows a recurrent model may keep more than of a long one.
    """
    ordered = sorted(lengths)

    def kept(tokens: int) -> int:
        rows = min(ROWS, bisect_right(ordered, tokens))
        return max(size.bytes(tokens), min(CACHE_BYTES, size.bytes(tokens, rows)))

    return max(map(kept, set(ordered)))
