"""Decides which tokens go into which row, from the documents' lengths alone: arithmetic, no input or output.

Documents are numbered through the corpus. The order of everything here depends on lengths, weights and the
seed, never on how many workers there are.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.recipe.keys.common import Packing

POOL_PIECES = 4096
"""How many pieces wait for a row: more means fewer cut documents, but a looser order of the corpus."""


class Segment(NamedTuple):
    """What a row holds of a document: `length` tokens from its token `start`."""

    document: int
    start: int
    length: int


RowPlan = list[Segment]


def held_out(lengths: np.ndarray, fraction: float, seed: int, source: int) -> np.ndarray:
    """Chooses whole documents of one source to hold out: bool [documents].

    Documents are visited in an order that depends on `seed`; each is held out if that brings the
    held-out tokens nearer to `fraction` of all. When no document does (they are few and long), the shortest
    is taken, unless it is the only one.

    Args:
        lengths: tokens of each document, int [documents].
        fraction: the share of the source's tokens to hold out, 0 <= fraction < 1.
        seed: the recipe's.
        source: ordinal of the source.
    """
    chosen = np.zeros(len(lengths), dtype=bool)
    if fraction == 0 or len(lengths) < 2:
        return chosen
    digest = hashlib.sha256(f"holdout {seed} {source}".encode()).digest()
    order = np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little"))).permutation(
        len(lengths)
    )
    target, taken = fraction * float(lengths.sum()), 0
    for document in order.tolist():
        length = int(lengths[document])
        if taken + length / 2 < target:
            chosen[document] = True
            taken += length
    if not taken:
        chosen[int(lengths.argmin())] = True
    return chosen


def draw(
    documents: Sequence[np.ndarray], lengths: np.ndarray, weights: Sequence[float | None]
) -> Iterator[int]:
    """Yields documents in the order in which they are packed, each once.

    The next document comes from the source that has given the fewest tokens for its weight, so that at
    every moment the sources' shares of the tokens drawn are their weights, to within one document each.
    When it has none left, the drawing ends: shares are kept rather than documents repeated. Without weights
    a source's share is its size, and every document is drawn.

    Args:
        documents: for each source, its documents' numbers in order.
        lengths: tokens of every document of the corpus.
        weights: one for each source, or None for all; they need not sum to one.
    """
    sizes = [int(lengths[numbers].sum()) for numbers in documents]
    present = [source for source, size in enumerate(sizes) if size]
    shares = {source: weights[source] or sizes[source] for source in present}
    drawn = dict.fromkeys(present, 0)
    waiting = {source: iter(documents[source].tolist()) for source in present}
    while present:
        source = min(present, key=lambda each: drawn[each] / shares[each])
        document = next(waiting[source], None)
        if document is None:
            return
        drawn[source] += int(lengths[document])
        yield document


def pack(
    documents: Iterable[int], lengths: np.ndarray, sequence_length: int, packing: Packing
) -> Iterator[RowPlan]:
    """Yields the rows, each exactly `sequence_length` tokens; fewer left over at the end are dropped.

    `concatenate` lays documents end to end in order and cuts every L tokens.

    `documents` keeps documents whole where it can. A document of L tokens or more first gives whole rows;
    what is left of it, like every shorter document, waits as a *piece*. A row begins with the piece that
    waited longest and takes, again and again, the longest piece that still fits. The gap that is left takes
    the beginning of a piece that is cut for it: the one cut last if it still waits, otherwise the shortest.
    Its rest keeps waiting. So few documents are cut: one already cut is cut again before any other.
    """
    if packing == "concatenate":
        return _concatenated(documents, lengths, sequence_length)
    return _best_fit(documents, lengths, sequence_length)


def _concatenated(documents: Iterable[int], lengths: np.ndarray, sequence_length: int) -> Iterator[RowPlan]:
    row: RowPlan = []
    room = sequence_length
    for document in documents:
        start, length = 0, int(lengths[document])
        while start < length:
            taken = min(room, length - start)
            row.append(Segment(document, start, taken))
            start += taken
            room -= taken
            if not room:
                yield row
                row, room = [], sequence_length


def _best_fit(documents: Iterable[int], lengths: np.ndarray, sequence_length: int) -> Iterator[RowPlan]:
    pool = _Pool()
    for document in documents:
        start, length = 0, int(lengths[document])
        while length - start >= sequence_length:
            yield [Segment(document, start, sequence_length)]
            start += sequence_length
        if start < length:
            pool.add(Segment(document, start, length - start))
        if len(pool) >= POOL_PIECES:
            yield pool.row(sequence_length)
    while pool.tokens >= sequence_length:
        yield pool.row(sequence_length)


class _Pool:
    """Pieces shorter than a row, by age and by length."""

    def __init__(self) -> None:
        self.tokens = 0
        self._age = 0
        self._by_age: OrderedDict[int, Segment] = OrderedDict()
        self._by_length: list[tuple[int, int]] = []  # (length, age), sorted
        self._cut_last = 0  # not the age of any piece

    def __len__(self) -> int:
        return len(self._by_age)

    def add(self, piece: Segment) -> int:
        """Adds a piece to the pool and returns its age."""
        self._age += 1
        self._by_age[self._age] = piece
        insort(self._by_length, (piece.length, self._age))
        self.tokens += piece.length
        return self._age

    def row(self, sequence_length: int) -> RowPlan:
        """Takes a whole row out of the pool, which holds at least that many tokens."""
        row = [self._take(next(iter(self._by_age)))]
        room = sequence_length - row[0].length
        while room:
            fitting = bisect_left(self._by_length, (room + 1, 0)) - 1
            if fitting < 0:
                row.append(self._cut(room))
                break
            longest = self._by_length[fitting][0]
            oldest = bisect_left(self._by_length, (longest, 0))
            row.append(self._take(self._by_length[oldest][1]))
            room -= longest
        return row

    def _take(self, age: int) -> Segment:
        piece = self._by_age.pop(age)
        del self._by_length[bisect_left(self._by_length, (piece.length, age))]
        self.tokens -= piece.length
        return piece

    def _cut(self, length: int) -> Segment:
        """Takes the first `length` tokens of a piece; every piece that waits is longer than that."""
        age = self._cut_last if self._cut_last in self._by_age else self._by_length[0][1]
        document, start, whole = self._take(age)
        self._cut_last = self.add(Segment(document, start + length, whole - length))
        return Segment(document, start, length)
