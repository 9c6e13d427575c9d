"""Which choices of blocks are asked for something, and which block holds it: integers, no tensors."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import NamedTuple

from se_model.span.layout import Document, Layout


@dataclass(frozen=True)
class Needle:
    """A stretch of tokens [start, end) that can be asked for; ``value`` is the token that has to be found."""

    start: int
    value: int
    end: int

    def moved(self, tokens: int) -> Needle:
        """The same needle, ``tokens`` further on."""
        return Needle(self.start + tokens, self.value + tokens, self.end + tokens)


@dataclass(frozen=True)
class Question:
    """Tokens [start, end) that ask for a needle; the token at ``predicts`` predicts the answer's first."""

    start: int
    predicts: int
    end: int
    needle: Needle

    def moved(self, tokens: int) -> Question:
        """The same question about the same needle, ``tokens`` further on."""
        place = (self.start + tokens, self.predicts + tokens, self.end + tokens)
        return Question(*place, self.needle.moved(tokens))


@dataclass(frozen=True)
class AskedDocument:
    """A document's questions, and all its needles, asked for or not.

    Attributes:
        row: of the batch; tokens are counted from its first.
    """

    row: int
    needles: tuple[Needle, ...]
    questions: tuple[Question, ...]

    def moved(self, row: int, tokens: int) -> AskedDocument:
        """The same document in another row, ``tokens`` further on."""
        return replace(
            self,
            row=row,
            needles=tuple(needle.moved(tokens) for needle in self.needles),
            questions=tuple(question.moved(tokens) for question in self.questions),
        )


@dataclass(frozen=True)
class Cases:
    """What is asked in one forward call of ``rows`` x ``tokens`` tokens."""

    rows: int
    tokens: int
    documents: tuple[AskedDocument, ...]


class Place(NamedTuple):
    """A block that a choice may hold."""

    row: int
    choice: int
    block: int


@dataclass(frozen=True)
class Places:
    """The cases of one layout.

    Attributes:
        asked: for each question that has its needle among the candidates of its choice, where that has to be.
        not_asked: the same for candidates that are not asked for, once for each choice of ``asked``.
        candidates: of each choice of ``asked``.
        depths: where each needle of ``asked`` stands in its document, from 0 to 1.
    """

    asked: tuple[Place, ...]
    not_asked: tuple[Place, ...]
    candidates: tuple[int, ...]
    depths: tuple[float, ...] = ()

    def chance(self, top_k: int) -> float:
        """The sum over ``asked`` of the probability that a block drawn at random is among those chosen."""
        return sum(min(top_k, candidates) / candidates for candidates in self.candidates)


def find_places(cases: Cases, layout: Layout) -> Places:
    """Where the layout has the blocks that are asked for.

    A question's choice is the one of the queries that the predicting token is among. Its needle counts where
    it lies wholly in candidates of that choice. Not asked are needles that no question asks that has any
    token among the choice's queries; those whose block holds the value of one that is asked are left out,
    for that block is sought.
    """
    asked: list[Place] = []
    candidates: list[int] = []
    depths: list[float] = []
    others: dict[Place, None] = {}  # a set that keeps its order
    for document in cases.documents:
        for question in document.questions:
            choice = _Choice.of(question.predicts, document.row, layout)
            if not choice.may_hold(question.needle):
                continue
            asked.append(choice.place_of(question.needle))
            candidates.append(choice.candidates)
            depths.append(choice.depth_of(question.needle))
            asked_there = {each.needle for each in document.questions if choice.is_for(each)}
            sought = {choice.place_of(needle) for needle in asked_there}
            rest = (needle for needle in document.needles if needle not in asked_there)
            places = (choice.place_of(needle) for needle in rest if choice.may_hold(needle))
            others |= {place: None for place in places if place not in sought}
    return Places(tuple(asked), tuple(others), tuple(candidates), tuple(depths))


@dataclass(frozen=True)
class _Choice:
    """A choice, counted from its document's first."""

    row: int
    number: int
    document: Document
    layout: Layout

    @classmethod
    def of(cls, token: int, row: int, layout: Layout) -> _Choice:
        """The choice that a token shares."""
        document = layout.documents[bisect_right(layout.bounds, token) - 1]
        return cls(row, (token - document.start) // layout.refresh, document, layout)

    @property
    def candidates(self) -> int:
        return self.layout.candidates(self.number)

    def may_hold(self, needle: Needle) -> bool:
        end = self.document.start + self.candidates * self.layout.block_size
        return self.document.start <= needle.start and needle.end <= end

    def is_for(self, question: Question) -> bool:
        first = self.document.start + self.number * self.layout.refresh
        return question.start < first + self.layout.refresh and first < question.end

    def depth_of(self, needle: Needle) -> float:
        return (needle.value - self.document.start) / self.document.length

    def place_of(self, needle: Needle) -> Place:
        block = (needle.value - self.document.start) // self.layout.block_size
        return Place(self.row, self.document.first_choice + self.number, self.document.first_block + block)
