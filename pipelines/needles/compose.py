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
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING

from pipelines.errors import EspanError
from pipelines.needles.sentences import (
    OPENING,
    Fact,
    Sentence,
    draw_facts,
    filler_of,
    link,
    needle,
    place_sentences,
    question_about,
    text_of,
    word_count,
)
from pipelines.needles.tokens import RunningTokens, running_tokens, token_count
from pipelines.needles.words import FILLER_SENTENCES, KEYS, VALUES, WORD_CLASSES
from pipelines.recipe.keys.needles import NeedleDocuments, RecallTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_PROMPT_SHAPES: dict[RecallTask, tuple[int, int, int]] = {
    # task: needles, keys linked to a needle, questions
    "single": (1, 0, 1),
    "multi_key": (8, 0, 1),
    "multi_query": (8, 0, 4),
    "variable_tracking": (4, 4, 1),
}


@dataclass(frozen=True)
class RecallSample:
    """A tokenised probe: `input_ids` of exactly the length asked for, and where its expected answers stand.

    Attributes:
        answer_spans: half-open ranges [start, end) of `input_ids`; an answer counts as recalled when the
            model, reading what stands before it, predicts every token of it.
        needle_depths: for each answer, the share of the prompt's tokens that come before the needle which
            states it. A key that is linked to another has the needle of that other key.
    """

    input_ids: list[int]
    answer_spans: list[tuple[int, int]]
    needle_depths: list[float]


def needle_document(spec: NeedleDocuments, *, seed: int, index: int) -> str:
    """The text of document `index`: exactly `spec.tokens` words separated by single blanks."""
    rng = random.Random(f"document {seed} {index}")
    needles = rng.randint(max(1, spec.needles // 2), spec.needles)
    facts = draw_facts(rng, needles=needles, links=spec.links)
    asked = rng.choices(facts, k=spec.questions)
    sentences = place_sentences(rng, facts, asked, length=spec.tokens, count=word_count, ask=spec.ask)
    words = text_of(sentences).split(" ")
    return " ".join(words[len(words) - spec.tokens :])


def recall_prompt(
    task: RecallTask,
    *,
    length: int,
    seed: int,
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    bos: int | None = None,
) -> RecallSample:
    """Probe `index` of a task, `length` tokens long under `tokenizer`; the questions stand at its very end.

    Args:
        task: what is asked.
        length: tokens of the prompt, `bos` included.
        seed: of everything that is drawn.
        index: which prompt.
        tokenizer: a fast one.
        bos: the token that begins the prompt, if any.

    Raises:
        ValueError: the needles and questions alone are longer than `length`.
        EspanError: no model could give an answer, because the tokenizer has no token for it, or one for it
            and the key that is asked for together.
    """
    rng = random.Random(f"prompt {task} {seed} {index}")
    needles, links, questions = _PROMPT_SHAPES[task]
    facts = draw_facts(rng, needles=needles, links=links)
    asked = rng.sample(facts[needles:] if links else facts, questions)
    beginning = [] if bos is None else [bos]
    room = length - len(beginning)

    def count(sentence: Sentence) -> int:
        return token_count(tokenizer, sentence.text)

    sentences = place_sentences(rng, facts, asked, length=room, count=count, ask="end")
    sentences, tokens = _fitted(rng, sentences, room, count, tokenizer)
    surplus = len(tokens.input_ids) - room
    moved = len(beginning) - surplus
    spans = [(start + moved, end + moved) for start, end in _answer_tokens(sentences, tokens)]
    # What is cut at the front may be the beginning of a needle.
    needles_at = [max(len(beginning), start + moved) for start in _needle_starts(sentences, asked, tokens)]
    depths = [start / length for start in needles_at]
    return RecallSample(beginning + tokens.input_ids[surplus:], spans, depths)


def vocabulary() -> list[str]:
    """Every word that a document can hold, in a fixed order: the shipped word-level tokenizer's entries."""
    templates = {
        word for sentence in FILLER_SENTENCES for word in sentence.split() if word not in WORD_CLASSES
    }
    fixed = {
        word
        for sentence in (needle("", ""), question_about("", ""), link("", ""))
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


def _fitted(
    rng: random.Random,
    sentences: list[Sentence],
    length: int,
    count: Callable[[Sentence], int],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Sentence], RunningTokens]:
    """Adds or removes filler until the sentences have `length` tokens, or a surplus of filler at the front.

    Where a tokenizer has tokens that reach over the end of a sentence, a text has not as many tokens as its
    sentences have one by one. Others, which is nearly all, leave the sentences as they are.
    """
    while True:
        tokens = running_tokens(tokenizer, text_of(sentences))
        surplus = len(tokens.input_ids) - length
        # What is cut at the front may take "note :" off the first needle, but nothing that tells a value.
        ahead = [*takewhile(lambda sentence: sentence.filler, sentences), Sentence(OPENING)]
        too_many = surplus - tokens.first_at(len(text_of(ahead)) + 1)
        if surplus >= 0 and too_many <= 0:
            return sentences, tokens
        if surplus < 0:
            sentences = filler_of(rng, -surplus, count) + sentences
        else:
            sentences = _with_less_filler(rng, sentences, too_many, count)


def _with_less_filler(
    rng: random.Random, sentences: list[Sentence], tokens: int, count: Callable[[Sentence], int]
) -> list[Sentence]:
    """Takes filler of at least `tokens` tokens away from behind the first needle."""
    first = next(number for number, sentence in enumerate(sentences) if not sentence.filler)
    filler = [number for number in range(first, len(sentences)) if sentences[number].filler]
    rng.shuffle(filler)
    gone: set[int] = set()
    while tokens > 0:
        if not filler:
            raise ValueError(f"the needles and questions alone are {tokens} tokens too long")
        number = filler.pop()
        gone.add(number)
        tokens -= count(sentences[number])
    return [sentence for number, sentence in enumerate(sentences) if number not in gone]


def _answer_tokens(sentences: Sequence[Sentence], tokens: RunningTokens) -> list[tuple[int, int]]:
    """Returns the tokens of each answer: those that hold any of its characters."""
    spans: list[tuple[int, int]] = []
    at = 0
    for sentence in sentences:
        if sentence.answer:
            answer = at + len(sentence.before) + 1
            key = at + sentence.before.rindex(" ") + 1
            first, end = tokens.holding(answer, answer + len(sentence.answer))
            # A token that holds the whole key asks for what is not said before it.
            if first == end or tokens.starts[first] <= key:
                what = "no token for" if first == end else "one token of the key that is asked for and"
                raise EspanError(
                    f"recall cannot be measured: the tokenizer has {what} the answer in '{sentence.text}'"
                )
            spans.append((first, end))
        at += len(sentence.text) + 1
    return spans


def _needle_starts(sentences: Sequence[Sentence], asked: Sequence[Fact], tokens: RunningTokens) -> list[int]:
    """Returns the first token of the needle that states the value of each fact."""
    characters = accumulate((len(sentence.text) + 1 for sentence in sentences[:-1]), initial=0)
    at = dict(zip(sentences, characters, strict=True))  # filler may stand twice, needles do not
    return [tokens.first_at(at[(fact.source or fact).sentence]) for fact in asked]
