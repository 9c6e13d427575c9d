"""How the causal triangle of a chunk is cut into squares and small triangles: integers only, no tensors.

A kernel that skips the future only in coarse steps computes much of it for nothing (torch's CPU flash kernel,
in steps of 512 keys: a quarter more than the triangle of 2,048 tokens). So the triangle is halved, again and
again: its lower left quarter is a square entirely in the past, and two triangles of half the side remain.
Only the smallest triangles, on the diagonal, are attended causally.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Of the triangles on the diagonal. If it were shorter, the kernel's products would be too small to be fast.
SIDE = 128


@dataclass(frozen=True)
class Tiles:
    """Equal rectangles of the triangle, one every ``step`` tokens; token positions count from its start.

    Attributes:
        start: the first rectangle's first key.
        step: tokens from one rectangle's first key to the next one's.
        count: how many.
        keys: keys in each.
        queries: queries in each, which follow its keys; with ``causal`` they are its keys.
        causal: whether each is a triangle itself.
    """

    start: int
    step: int
    count: int
    keys: int
    queries: int
    causal: bool


def cut_triangle(length: int, tokens: int) -> Iterator[Tiles]:
    """Every (query, key) pair of ``length`` tokens with the key not after the query, exactly once.

    Equal tiles come together, as long as they have no more than ``tokens`` queries. The causal ones come
    first and hold every token once.
    """
    yield from _cut_row(SIDE, length // SIDE, SIDE, SIDE, tokens, causal=True)
    if rest := length % SIDE:
        yield Tiles(length - rest, rest, 1, rest, rest, causal=True)
    side = SIDE
    while side < length:
        pairs, rest = divmod(length, 2 * side)
        yield from _cut_row(2 * side, pairs, side, side, tokens, causal=False)
        if rest > side:
            yield Tiles(length - rest, rest, 1, side, rest - side, causal=False)
        side *= 2


def _cut_row(step: int, count: int, keys: int, queries: int, tokens: int, *, causal: bool) -> Iterator[Tiles]:
    at_once = max(1, tokens // queries)
    for first in range(0, count, at_once):
        yield Tiles(first * step, step, min(at_once, count - first), keys, queries, causal)
