"""Prompts with needles ("One of the special magic numbers for old-fox is: 4815162."): eight tasks of RULER.

Templates are RULER's; what is drawn, and in which order, is as in lm-eval 0.4.13, `prepare_niah.py` of
`tasks/ruler`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from itertools import pairwise

from pipelines.ruler.draws import Draws, shuffled
from pipelines.ruler.essays import Essays
from pipelines.ruler.prompts import Prompt, beginning, divide
from pipelines.ruler.tasks import Kind, Needles
from pipelines.ruler.word_lists import key_words

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_NEEDLE = "One of the special magic {values} for {key} is: {value}."
_ONE = (
    "A special magic {values} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {values} afterwards.\n{context}\n"
    "What is the special magic {values} for {keys} mentioned in the provided text?"
)
_SEVERAL = (
    "Some special magic {values} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {values} afterwards.\n{context}\n"
    "What are all the special magic {values} for {keys} mentioned in the provided text?"
)
_DEPTHS = [round(100 * step / 39) for step in range(40)]
"""Where needles may stand in essays, in percent of their sentences."""


@dataclass(frozen=True)
class _Facts:
    """The keys of a prompt and the values of each."""

    keys: list[str]
    values: list[list[str]]


def needle_prompt(needles: Needles, size: float, draws: Draws, essays: Essays | None = None) -> Prompt:
    """Returns a prompt.

    Args:
        needles: what is hidden.
        size: words of essays, or lines of other haystacks; a fraction is the beginning of one more.
        draws: used up from the state in which it is.
        essays: the words, where the haystack is essays.

    Raises:
        ValueError: the haystack has fewer lines than there are needles, or more needles than places.
    """
    facts = _draw_facts(needles, draws)
    hidden = [
        _NEEDLE.format(values=needles.value, key=key, value=value)
        for key, values in zip(facts.keys, facts.values, strict=True)
        for value in values
    ]
    if needles.haystack == "essay":
        if essays is None:
            raise ValueError("this task needs essays")
        context = _in_essays(shuffled(hidden), essays.sentences(size), draws)
    else:
        context = _in_lines(shuffled(hidden), needles, size, draws)
    asked = draws.choices.sample(range(len(facts.keys)), needles.queries)
    return _prompt(needles, context, facts, asked, hidden)


def _draw_facts(needles: Needles, draws: Draws) -> _Facts:
    keys, values = [], []
    for _ in range(needles.keys):
        keys.append(_draw(needles.key, draws))
        values.append([_draw(needles.value, draws) for _ in range(needles.values)])
    return _Facts(keys, values)


def _draw(kind: Kind, draws: Draws) -> str:
    if kind == "numbers":
        return str(draws.choices.randint(1_000_000, 9_999_999))
    if kind == "words":
        return draws.choices.choice(key_words())
    return str(uuid.UUID(int=draws.choices.getrandbits(128), version=4))


def _in_essays(hidden: list[str], sentences: list[str], draws: Draws) -> str:
    depths = draws.choices.sample(_DEPTHS, len(hidden))
    places = sorted(int(len(sentences) * (depth / 100)) for depth in depths)
    parts = []
    for needle, (start, end) in zip([*hidden, None], pairwise([0, *places, len(sentences)]), strict=True):
        parts.append(" ".join(sentences[start:end]))
        if needle is not None:
            parts.append(needle)
    return " ".join(parts)


def _in_lines(hidden: list[str], needles: Needles, size: float, draws: Draws) -> str:
    whole, fraction = divide(size)
    lines = [_line(needles, draws) for _ in range(whole)]
    rest = beginning(_line(needles, draws), fraction) if fraction else ""
    places = sorted(draws.choices.sample(range(whole), len(hidden)), reverse=True)
    for place, needle in zip(places, hidden, strict=True):
        lines.insert(place, needle)
    return "\n".join([*lines, rest] if rest else lines)


def _line(needles: Needles, draws: Draws) -> str:
    if needles.haystack == "repeat":
        return NOISE
    key, value = _draw(needles.key, draws), _draw(needles.value, draws)
    return _NEEDLE.format(values=needles.value, key=key, value=value)


def _prompt(needles: Needles, context: str, facts: _Facts, asked: list[int], hidden: list[str]) -> Prompt:
    keys = [facts.keys[number] for number in asked]
    listed = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
    one = needles.queries * needles.values == 1
    values = needles.value.removesuffix("s") if one else needles.value
    text = (_ONE if one else _SEVERAL).format(values=values, context=context, keys=listed)
    verb = "is" if one else "are"
    return Prompt(
        input=text,
        gen_prefix=f"The special magic {values} for {listed} mentioned in the provided text {verb}",
        outputs=[value for number in asked for value in facts.values[number]],
        asked=tuple(
            hidden[number * needles.values + each] for number in asked for each in range(needles.values)
        ),
    )
