"""RULER's tasks: what is hidden where, and how much room an answer has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.recipe.keys.ruler import NeedleTask, RulerTask

Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True)
class Needles:
    """What a task with needles hides and asks for.

    Attributes:
        haystack: what surrounds the needles: one repeated line, essays, or needles that nobody asks for.
        key, value: what a key and a value are.
        keys, values, queries: how many keys there are, values each of them has, keys asked for.
    """

    haystack: Literal["repeat", "essay", "needle"]
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLES: dict[NeedleTask, Needles] = {
    "niah_single_1": Needles("repeat"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", value="uuids"),
    "niah_multikey_1": Needles("essay", keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", key="uuids", value="uuids"),
    "niah_multivalue": Needles("essay", values=4),
    # lm-eval gives as many keys as are asked for; the paper's table says 1 key.
    "niah_multiquery": Needles("essay", keys=4, queries=4),
}

_ANSWER_TOKENS: dict[RulerTask, int] = {"vt": 30, "cwe": 120, "fwe": 50, "qa_squad": 32, "qa_hotpot": 32}
_NEEDLE_ANSWER_TOKENS = 128


def answer_tokens(task: RulerTask) -> int:
    """Returns how many tokens a model may write, for which a prompt leaves room."""
    return _ANSWER_TOKENS.get(task, _NEEDLE_ANSWER_TOKENS)


def delimiter(task: RulerTask) -> str:
    """Returns what lm-eval puts between a prompt's input and the beginning of its answer."""
    return "\n\n" if task == "cwe" else " "


def needs_essays(task: RulerTask) -> bool:
    """Returns whether the task's haystack is essays."""
    return any(name == task and needles.haystack == "essay" for name, needles in NEEDLES.items())


def task_name(task: RulerTask, length: int) -> str:
    """Returns what lm-eval calls the task at this length."""
    return f"ruler_{task}_{length}"
