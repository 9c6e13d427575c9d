"""Documents and prompts that test recall: needles ("note : falcon 42 .") in natural-looking filler text.

One composer serves both ends: `needle_document` writes training documents for the prepare stage,
`recall_prompt` the tokenised probes of the evaluate stage. The tasks follow RULER (Hsieh et al., 2024) in
miniature: single, multi-key and multi-query needles, and variable tracking, where a key takes its value from
another key. Everything is a pure function of (seed, index), so documents and scores are the same whatever the
parallelism.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.needle_words import FILLER_SENTENCES, KEYS, VALUES, WORD_CLASSES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

RecallTask = Literal["single", "multi_key", "multi_query", "variable_tracking"]
RECALL_TASKS: tuple[RecallTask, ...] = get_args(RecallTask)

_PROMPT_SHAPES: dict[RecallTask, tuple[int, int, int]] = {
    # task: needles, keys linked to a needle, questions
    "single": (1, 0, 1),
    "multi_key": (8, 0, 1),
    "multi_query": (8, 0, 4),
    "variable_tracking": (4, 4, 1),
}


class NeedleDocuments(BaseModel):
    """What a training document looks like: its length, how many needles it holds, what is asked of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Annotated[
        int, Field(ge=16, description="words in a document, the needles and questions included")
    ]
    needles: Annotated[
        int, Field(ge=1, description="keys with a value of their own, at most; at least one")
    ] = 8
    questions: Annotated[int, Field(ge=0, description="how often a value is asked for")] = 4
    links: Annotated[int, Field(ge=0, description="keys that take their value from another key")] = 0
    ask: Annotated[
        Literal["end", "anywhere"],
        Field(description="where the questions stand: after everything else, or anywhere after their needle"),
    ] = "end"

    @model_validator(mode="after")
    def _fits(self) -> NeedleDocuments:
        least = self.needles * _words(_needle("a", "0")) + self.questions * _words(_question("a", "0"))
        least += self.links * _words(_link("a", "b"))
        if least > self.tokens:
            raise ValueError(
                f"{self.needles} needles, {self.links} links and {self.questions} questions take {least} "
                f"words, more than tokens = {self.tokens}"
            )
        if self.needles + self.links > len(KEYS):
            raise ValueError(
                f"{self.needles} needles and {self.links} links: there are only {len(KEYS)} different keys"
            )
        return self


@dataclass(frozen=True)
class Sentence:
    """A sentence; `answer` is the part of it that only recall can predict (empty outside questions)."""

    before: str
    answer: str = ""
    after: str = ""

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
        return _link(self.key, self.source.key) if self.source else _needle(self.key, self.value)


@dataclass(frozen=True)
class RecallSample:
    """A tokenised probe: `input_ids` of exactly the length asked for, and where its expected answers stand.

    `answer_spans` are half-open ranges [start, end) of `input_ids`; an answer counts as recalled when the
    model, reading what stands before it, predicts every token of it.
    """

    input_ids: list[int]
    answer_spans: list[tuple[int, int]]


def needle_document(spec: NeedleDocuments, *, seed: int, index: int) -> str:
    """The text of document `index`: exactly `spec.tokens` words separated by single blanks."""
    rng = random.Random(f"document {seed} {index}")
    needles = rng.randint(max(1, spec.needles // 2), spec.needles)
    facts = _facts(rng, needles=needles, links=spec.links)
    asked = rng.choices(facts, k=spec.questions)
    sentences = _place(rng, facts, asked, length=spec.tokens, count=_words, ask=spec.ask)
    words = " ".join(sentence.text for sentence in sentences).split(" ")
    return " ".join(words[len(words) - spec.tokens :])


def recall_prompt(
    task: RecallTask, *, length: int, seed: int, index: int, tokenizer: PreTrainedTokenizerBase
) -> RecallSample:
    """Probe `index` of a task, `length` tokens long under `tokenizer`; the questions stand at its very end.

    Raises ValueError where the needles and questions alone are longer than `length`.
    """
    rng = random.Random(f"prompt {task} {seed} {index}")
    needles, links, questions = _PROMPT_SHAPES[task]
    facts = _facts(rng, needles=needles, links=links)
    asked = rng.sample(facts[needles:] if links else facts, questions)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(f" {text}", add_special_tokens=False) if text else []

    def count(sentence: Sentence) -> int:
        return sum(len(encode(part)) for part in (sentence.before, sentence.answer, sentence.after))

    sentences = _place(rng, facts, asked, length=length, count=count, ask="end")
    return _tokenised(sentences, encode, length)


def vocabulary() -> list[str]:
    """Every word that a document can hold, in a fixed order: the shipped word-level tokenizer's entries."""
    templates = {
        word for sentence in FILLER_SENTENCES for word in sentence.split() if word not in WORD_CLASSES
    }
    fixed = {
        word
        for sentence in (_needle("", ""), _question("", ""), _link("", ""))
        for word in sentence.text.split()
    }
    classes = {word for words in WORD_CLASSES.values() for word in words}
    return sorted(templates | fixed | classes | set(KEYS)) + list(VALUES)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `vocabulary()`, after <unk> = 0 and <eos> = 1; decodes to words and blanks."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    entries = {word: index for index, word in enumerate(["<unk>", "<eos>", *vocabulary()])}
    tokenizer = Tokenizer(WordLevel(entries, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _needle(key: str, value: str) -> Sentence:
    return Sentence(f"note : {key} {value} .")


def _link(key: str, source: str) -> Sentence:
    return Sentence(f"note : {key} {source} .")


def _question(key: str, value: str) -> Sentence:
    return Sentence(f"recall : {key}", value, ".")


def _words(sentence: Sentence) -> int:
    return len(sentence.text.split())


def _facts(rng: random.Random, *, needles: int, links: int) -> list[Fact]:
    """Facts about `needles + links` different keys, the linked ones last."""
    keys = rng.sample(KEYS, needles + links)
    facts = [Fact(key, rng.choice(VALUES)) for key in keys[:needles]]
    for key in keys[needles:]:
        source = rng.choice(facts[:needles])
        facts.append(Fact(key, source.value, source))
    return facts


def _place(
    rng: random.Random,
    facts: Sequence[Fact],
    asked: Sequence[Fact],
    *,
    length: int,
    count: Callable[[Sentence], int],
    ask: Literal["end", "anywhere"],
) -> list[Sentence]:
    """Facts, questions and filler in order, `length` long or a little more: surplus filler stands first."""
    questions = [_question(fact.key, fact.value) for fact in asked]
    room = length - sum(count(fact.sentence) for fact in facts) - sum(map(count, questions))
    if room < 0:
        raise ValueError(f"the needles and questions alone are {-room} tokens longer than length = {length}")
    filler: list[Sentence] = []
    while room > 0:
        filler.append(_filler(rng))
        room -= count(filler[-1])
    position = {fact.key: rng.random() for fact in facts}
    placed = [(position[fact.key], fact.sentence) for fact in facts]
    placed += [(rng.random(), sentence) for sentence in filler[1:]]
    for fact, question in zip(asked, questions, strict=True):
        known = max(position[fact.key], position[fact.source.key] if fact.source else 0.0)
        placed.append((1.0 if ask == "end" else known + (1 - known) * rng.random(), question))
    return filler[:1] + [sentence for _, sentence in sorted(placed, key=lambda pair: pair[0])]


def _filler(rng: random.Random) -> Sentence:
    template = rng.choice(FILLER_SENTENCES)
    return Sentence(" ".join(rng.choice(WORD_CLASSES.get(word, (word,))) for word in template.split()))


def _tokenised(
    sentences: Sequence[Sentence], encode: Callable[[str], list[int]], length: int
) -> RecallSample:
    input_ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for sentence in sentences:
        input_ids += encode(sentence.before)
        if sentence.answer:
            start = len(input_ids)
            input_ids += encode(sentence.answer)
            spans.append((start, len(input_ids)))
        input_ids += encode(sentence.after)
    surplus = len(input_ids) - length
    return RecallSample(input_ids[surplus:], [(start - surplus, end - surplus) for start, end in spans])
