"""Finds needles and the questions about them in rows of tokens: what a choice of memory blocks is asked for.

Tokens are decoded and encoded again, which says of every token which characters it holds. Only where that
gives back exactly the same tokens are these the tokens of the row; a document of which it does not (a
tokenizer may normalise its text, or a row begin in the middle of a word) is left out: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from pipelines.needles.sentences import Sentence, link, needle, question_about
from pipelines.needles.tokens import RunningTokens, tokens_again
from pipelines.needles.words import KEYS, VALUES
from se_model.span.cases import AskedDocument, Cases, Needle, Question

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

_KEY, _TOLD = "KEY", "TOLD"


def cases_in(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]],
    *,
    joined: bool,
) -> Cases:
    """Returns what is asked in a batch of rows: tokens [L] each, and the lengths of their documents.

    `joined`: the model takes the rows as one, [1, rows * L].
    """
    length = len(rows[0][0])
    documents = [
        document.moved(0, number * length) if joined else document.moved(number, 0)
        for number, (input_ids, lengths) in enumerate(rows)
        for document in find_asked(tokenizer, input_ids, lengths)
    ]
    shape = (1, len(rows) * length) if joined else (len(rows), length)
    return Cases(*shape, tuple(documents))


def find_asked(
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Sequence[int] | np.ndarray,
    doc_lengths: Sequence[int] | np.ndarray,
) -> list[AskedDocument]:
    """Returns, for each document of a row that asks for needles told in it, its needles and questions.

    A question's needle is the note about its key: of several, the last before it. Where the note names
    another key, that is the needle's value. Tokens are counted over the row.
    """
    if not tokenizer.is_fast:  # others do not tell which characters a token holds
        return []
    ids, found, end = [int(token) for token in input_ids], [], 0
    special = set(tokenizer.all_special_ids)
    for length in doc_lengths:
        start, end = end, end + int(length)
        document = _asked_in(tokenizer, ids[start:end], special)
        if document is not None:
            found.append(document.moved(0, start))
    return found


def _asked_in(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: set[int]
) -> AskedDocument | None:
    """Returns the needles and questions of a document; None where it has no question, or cannot be read."""
    notes: list[tuple[str, str, Needle]] = []
    asked: list[Question] = []
    for at, piece in _between(ids, special):
        try:
            text, tokens = tokens_again(tokenizer, piece)
        except ValueError:
            return None
        for match in _matches(_NOTES, text):
            start, stop = tokens.holding(*match.span())
            value = tokens.holding(*match.span(_TOLD))[0]
            notes.append((match[_KEY], match[_TOLD], Needle(start, value, stop).moved(at)))
        for match in _matches(_QUESTIONS, text):
            start, stop = tokens.holding(*match.span())
            answer = tokens.holding(*match.span(_TOLD))[0]
            told = _last_note(notes, match[_KEY], match[_TOLD], before=start + at)
            if told is not None and _asks_before(tokens, match, answer):
                asked.append(Question(start + at, answer - 1 + at, stop + at, told))
    return AskedDocument(0, tuple(place for _, _, place in notes), tuple(asked)) if asked else None


def _between(ids: Sequence[int], special: set[int]) -> Iterator[tuple[int, list[int]]]:
    """Yields what lies between special tokens, which begin, end or replace text, and where it begins."""
    for is_special, group in groupby(enumerate(ids), key=lambda pair: pair[1] in special):
        if not is_special:
            piece = list(group)
            yield piece[0][0], [token for _, token in piece]


def _last_note(
    notes: Sequence[tuple[str, str, Needle]], key: str, answer: str, *, before: int
) -> Needle | None:
    """Returns the last note about `key`; None where there is none, or it is one of another text's."""
    for about, told, place in reversed(notes):
        if about == key and place.end <= before:
            return place if told == answer or told in KEYS else None
    return None


def _asks_before(tokens: RunningTokens, match: re.Match[str], answer: int) -> bool:
    """Returns whether the key stands in tokens before the answer's first."""
    return bool(tokens.starts[answer] > match.start(_KEY))


def _matches(patterns: Sequence[re.Pattern[str]], text: str) -> list[re.Match[str]]:
    found = [match for pattern in patterns for match in pattern.finditer(text)]
    return sorted(found, key=lambda match: match.start())


def _pattern(sentence: Sentence, told: Sequence[str]) -> re.Pattern[str]:
    """Returns what finds sentences like this one, of the words `KEY` and `TOLD`, with any key in it."""
    text = re.escape(sentence.text)
    for name, words in ((_KEY, KEYS), (_TOLD, told)):
        text = text.replace(name, f"(?P<{name}>{'|'.join(words)})")
    return re.compile(rf"(?<!\S){text}(?!\S)")


_NOTES = (_pattern(needle(_KEY, _TOLD), VALUES), _pattern(link(_KEY, _TOLD), KEYS))
_QUESTIONS = (_pattern(question_about(_KEY, _TOLD), VALUES),)
