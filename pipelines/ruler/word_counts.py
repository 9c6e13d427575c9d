"""Lists of words of which some are frequent: RULER's tasks `cwe` (common words) and `fwe` (coded words).

Templates are RULER's; what is drawn, and in which order, is as in lm-eval 0.4.13, `cwe_utils.py` and
`fwe_utils.py` of `tasks/ruler`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import numpy as np

from pipelines.ruler.draws import Draws, shuffled
from pipelines.ruler.prompts import Prompt, beginning, divide
from pipelines.ruler.word_lists import listed_words

COMMON = 10
FEWEST_CODED = 53
"""From this many coded words on, the three most frequent are more frequent than all others."""
_LONG = 4096
"""From this length on, lists of common words repeat their words more often."""

_COMMON_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
_COMMON_ANSWER = "Answer: The top 10 words that appear most often in the list are:"
_CODED_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
_CODED_ANSWER = "Answer: According to the coded text above, the three most frequently appeared words are:"
_ANSWERS = 3
_DOTS = "..."
_MOST_DOTS = 64
_CODE_LETTERS = 6
_ALPHA = 2.0
_ZETA_OF_ALPHA = math.pi**2 / 6
_TOKENS_PER_CODED_WORD = 50


def common_words_prompt(length: int, size: float, draws: Draws) -> Prompt:
    """Returns a prompt whose list has `size` different words, more than `COMMON`, ten of them common.

    `length` is what the prompt is made for; a fraction of a word is its first letters, at the list's end.
    """
    few = length < _LONG
    example, example_answer = _word_list(20 if few else 40, (3, 1) if few else (10, 3), draws)
    context, answer = _word_list(size, (6, 1) if few else (30, 3), draws)
    solved = f"{_COMMON_TEMPLATE.format(context=example)} {_COMMON_ANSWER}{numbered(example_answer)}"
    return Prompt(_COMMON_TEMPLATE.format(context=context), _COMMON_ANSWER, answer, input_example=solved)


def coded_words_prompt(length: int, size: float, draws: Draws) -> Prompt:
    """Returns a prompt of about `size` words, of which each rank is rarer by a power law.

    `length` is what the prompt is made for; a fraction of a word is dots at the end, which do not count.
    """
    vocabulary = _vocabulary(max(_ANSWERS + 1, length // _TOKENS_PER_CODED_WORD), draws)
    whole, fraction = divide(size)
    ranks = np.arange(1, len(vocabulary) + 1)
    counts = (whole * ranks**-_ALPHA / _ZETA_OF_ALPHA).astype(int).tolist()
    words = shuffled([word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)])
    words += [_DOTS] * round(fraction * _MOST_DOTS)
    return Prompt(
        _CODED_TEMPLATE.format(context=" ".join(words)), _CODED_ANSWER, vocabulary[1 : 1 + _ANSWERS]
    )


def _word_list(size: float, repeats: tuple[int, int], draws: Draws) -> tuple[str, list[str]]:
    """Returns a numbered list and its common words, each of these as often as `repeats` says first."""
    whole, fraction = divide(size)
    words = draws.choices.sample(listed_words(), whole + bool(fraction))
    rest = beginning(words.pop(), fraction) if fraction else ""
    common, others = words[:COMMON], words[COMMON:]
    listed = common * repeats[0] + others * repeats[1]
    draws.order.shuffle(listed)
    return numbered([*listed, rest] if rest else listed), common


def numbered(words: Sequence[str]) -> str:
    """Returns the words as a list, numbered from 1, on one line."""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


def _vocabulary(size: int, draws: Draws) -> list[str]:
    """Returns coded words by rank, the first of them dots."""
    words: set[str] = set()
    while len(words) < size:
        words.add("".join(draws.choices.choices(string.ascii_lowercase, k=_CODE_LETTERS)))
    ranked = shuffled(sorted(words))
    return [_DOTS, *ranked[1:]]
