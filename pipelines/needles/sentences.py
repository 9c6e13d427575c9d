"""Sentences of the synthetic documents: facts, questions about them, filler, and where they stand."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.errors import EspanError
from pipelines.needles.words import FILLER_SENTENCES, KEYS, VALUES, WORD_CLASSES

OPENING = "note :"


@dataclass(frozen=True)
class Sentence:
    """A sentence; `answer` is the part of it that only recall can predict (empty outside questions).

    `filler` sentences tell nothing that is asked for.
    """

    before: str
    answer: str = ""
    after: str = ""
    filler: bool = False

    @property
    def text(self) -> str:
        """The whole sentence."""
        return " ".join(part for part in (self.before, self.answer, self.after) if part)


@dataclass(frozen=True)
class Fact:
    """A key and its value, stated outright or, with a `source`, by naming the key that has the same value."""

    key: str
    value: str
    source: Fact | None = None

    @property
    def sentence(self) -> Sentence:
        """The note that states it."""
        return link(self.key, self.source.key) if self.source else needle(self.key, self.value)


def needle(key: str, value: str) -> Sentence:
    """States the value of a key."""
    return Sentence(f"{OPENING} {key} {value} .")


def link(key: str, source: str) -> Sentence:
    """Says that a key has the value of another."""
    return Sentence(f"{OPENING} {key} {source} .")


def question_about(key: str, value: str) -> Sentence:
    """Asks for the value of a key, and answers."""
    return Sentence(f"recall : {key}", value, ".")


def word_count(sentence: Sentence) -> int:
    """Returns how many words a sentence has, its full stop included."""
    return len(sentence.text.split())


def draw_facts(rng: random.Random, *, needles: int, links: int) -> list[Fact]:
    """Facts about `needles + links` different keys, the linked ones last."""
    keys = rng.sample(KEYS, needles + links)
    facts = [Fact(key, rng.choice(VALUES)) for key in keys[:needles]]
    for key in keys[needles:]:
        source = rng.choice(facts[:needles])
        facts.append(Fact(key, source.value, source))
    return facts


def place_sentences(
    rng: random.Random,
    facts: Sequence[Fact],
    asked: Sequence[Fact],
    *,
    length: int,
    count: Callable[[Sentence], int],
    ask: Literal["end", "anywhere"],
) -> list[Sentence]:
    """Facts, questions and filler in order, `length` long or a little more: surplus filler stands first."""
    questions = [question_about(fact.key, fact.value) for fact in asked]
    room = length - sum(count(fact.sentence) for fact in facts) - sum(map(count, questions))
    if room < 0:
        raise ValueError(f"the needles and questions alone are {-room} tokens longer than length = {length}")
    filler = filler_of(rng, room, count)
    position = {fact.key: rng.random() for fact in facts}
    placed = [(position[fact.key], fact.sentence) for fact in facts]
    placed += [(rng.random(), sentence) for sentence in filler[1:]]
    for fact, question in zip(asked, questions, strict=True):
        known = max(position[fact.key], position[fact.source.key] if fact.source else 0.0)
        placed.append((1.0 if ask == "end" else known + (1 - known) * rng.random(), question))
    return filler[:1] + [sentence for _, sentence in sorted(placed, key=lambda pair: pair[0])]


def filler_of(rng: random.Random, length: int, count: Callable[[Sentence], int]) -> list[Sentence]:
    """Draws sentences of filler, `length` long or a little more."""
    filler: list[Sentence] = []
    while length > 0:
        filler.append(_filler(rng))
        counted = count(filler[-1])
        if not counted:
            raise EspanError(f"the tokenizer makes no token of '{filler[-1].text}'")
        length -= counted
    return filler


def _filler(rng: random.Random) -> Sentence:
    template = rng.choice(FILLER_SENTENCES)
    words = (rng.choice(WORD_CLASSES.get(word, (word,))) for word in template.split())
    return Sentence(" ".join(words), filler=True)


def text_of(sentences: Sequence[Sentence]) -> str:
    """Returns sentences as running text."""
    return " ".join(sentence.text for sentence in sentences)
