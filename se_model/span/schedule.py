"""Random choices as a function of (seed, step, layer): a repeated forward call repeats them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def counter_hash(*counters: int) -> int:
    """A 128-bit pseudo-random integer that depends only on the counters."""
    text = "/".join(str(counter) for counter in counters)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def as_chunk_sizes(chunk_sizes: int | Sequence[int]) -> tuple[int, ...]:
    """One size or several, as a tuple.

    Raises:
        ValueError: if there is none, or one is below 1.
    """
    sizes = (chunk_sizes,) if isinstance(chunk_sizes, int) else tuple(chunk_sizes)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"chunk_sizes must be one or more sizes of at least 1 token, not {chunk_sizes}")
    return sizes


def draw_chunk_size(chunk_sizes: Sequence[int], *, seed: int, step: int, layer: int) -> int:
    """One of ``chunk_sizes``, each equally likely, drawn anew for every layer and forward call.

    The paper draws each layer's chunk size at random in each forward call (section 4.1).
    """
    return chunk_sizes[counter_hash(seed, step, layer) % len(chunk_sizes)]
