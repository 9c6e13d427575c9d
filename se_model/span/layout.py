"""Which tokens form a chunk, a memory block and a choice of blocks: arithmetic on integers, no tensors.

Chunks and blocks are counted from the start of each document; only a document's last one may be shorter.
A *choice* is the set of blocks that ``refresh`` consecutive queries retrieve together: the queries of a
whole chunk (``refresh == chunk_size``, the paper's), or of a part of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise


@dataclass(frozen=True)
class Document:
    """A document's place in the row, and the ids of its first block and its first choice."""

    start: int
    length: int
    first_block: int
    first_choice: int

    @property
    def end(self) -> int:
        """The row's first token after the document."""
        return self.start + self.length


@dataclass(frozen=True)
class Run:
    """Consecutive pieces of a row, equally long, each retrieving equally many blocks: one batched call.

    Attributes:
        start: first token, counted over the row.
        pieces: how many.
        length: tokens in each.
        first_choice: id of the first piece's choice.
        retrieved: blocks that each piece retrieves.
        document: where the pieces lie.
    """

    start: int
    pieces: int
    length: int
    first_choice: int
    retrieved: int
    document: Document

    @property
    def tokens(self) -> slice:
        """The run's place in the row."""
        return slice(self.start, self.start + self.pieces * self.length)

    @property
    def choices(self) -> slice:
        """The ids of the pieces' choices."""
        return slice(self.first_choice, self.first_choice + self.pieces)


@dataclass(frozen=True)
class Layout:
    """How a row of packed documents is cut. Sizes are in tokens; ids count over the whole row.

    Attributes:
        chunk_size: a multiple of ``block_size`` and of ``refresh``.
        bounds: where documents begin, and the end of the last.
    """

    chunk_size: int
    block_size: int
    refresh: int
    bounds: tuple[int, ...]

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """The documents in order."""
        documents: list[Document] = []
        block = choice = 0
        for start, end in pairwise(self.bounds):
            documents.append(Document(start, end - start, block, choice))
            block += _pieces(end - start, self.block_size)
            choice += _pieces(end - start, self.refresh)
        return tuple(documents)

    @cached_property
    def blocks(self) -> int:
        """How many memory blocks the row has, partial ones included."""
        return sum(_pieces(document.length, self.block_size) for document in self.documents)

    @cached_property
    def choices(self) -> int:
        """How many choices the row has."""
        return sum(self.choices_of(document) for document in self.documents)

    def choices_of(self, document: Document) -> int:
        """How many choices a document has."""
        return _pieces(document.length, self.refresh)

    def candidates(self, choice: int) -> int:
        """How many blocks lie wholly before the chunk of a choice: the first ones of its document.

        ``choice`` is counted from the document's first. All these blocks are whole, because a chunk is a
        whole number of blocks.
        """
        return choice * self.refresh // self.chunk_size * (self.chunk_size // self.block_size)

    @cached_property
    def most_candidates(self) -> int:
        """The largest number of blocks that any choice can retrieve."""
        return max(self.candidates(self.choices_of(document) - 1) for document in self.documents)

    @cached_property
    def chunk_starts(self) -> tuple[int, ...]:
        """For each choice the first token of its chunk."""
        return tuple(
            document.start + choice * self.refresh // self.chunk_size * self.chunk_size
            for document in self.documents
            for choice in range(self.choices_of(document))
        )

    @cached_property
    def block_starts(self) -> tuple[int, ...]:
        """For each block its first token."""
        return tuple(
            start
            for document in self.documents
            for start in range(document.start, document.end, self.block_size)
        )

    def counts(self, top_k: int) -> tuple[int, ...]:
        """How many blocks each choice retrieves if it takes ``top_k``, or all where there are fewer."""
        return tuple(
            min(top_k, self.candidates(choice))
            for document in self.documents
            for choice in range(self.choices_of(document))
        )

    def chunk_runs(self) -> Iterator[Run]:
        """Runs of chunks, each token in exactly one; what they retrieve is left out."""
        for document in self.documents:
            whole, rest = divmod(document.length, self.chunk_size)
            if whole:
                yield Run(document.start, whole, self.chunk_size, document.first_choice, 0, document)
            if rest:
                yield Run(document.end - rest, 1, rest, document.first_choice, 0, document)

    def choice_runs(self, counts: tuple[int, ...]) -> Iterator[Run]:
        """Runs of choices, given how many blocks each retrieves; each token is in exactly one."""
        for document in self.documents:
            choice, choices = 0, self.choices_of(document)
            while choice < choices:
                first = document.first_choice + choice
                start = document.start + choice * self.refresh
                length = min(self.refresh, document.end - start)
                pieces = 1
                while (
                    length == self.refresh
                    and choice + pieces < choices
                    and counts[first + pieces] == counts[first]
                    and start + (pieces + 1) * length <= document.end
                ):
                    pieces += 1
                yield Run(start, pieces, length, first, counts[first], document)
                choice += pieces


def _pieces(tokens: int, size: int) -> int:
    return -(-tokens // size)


@lru_cache(maxsize=256)
def cut(chunk_size: int, block_size: int, refresh: int, bounds: tuple[int, ...]) -> Layout:
    """The layout of a row whose documents lie between ``bounds``, shared by the layers of a model."""
    return Layout(chunk_size, block_size, refresh, bounds)
