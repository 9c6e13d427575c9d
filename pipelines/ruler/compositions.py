"""How the prompts of each task are composed, and how little or much haystack they can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from pipelines.errors import EspanError
from pipelines.recipe.keys.ruler import QuestionTask, RulerTask
from pipelines.ruler.draws import Draws
from pipelines.ruler.essays import Essays
from pipelines.ruler.needles import needle_prompt
from pipelines.ruler.prompts import Prompt
from pipelines.ruler.questions import Questions, question_prompt
from pipelines.ruler.tasks import NEEDLES
from pipelines.ruler.variables import variable_prompt
from pipelines.ruler.word_counts import COMMON, FEWEST_CODED, coded_words_prompt, common_words_prompt
from pipelines.ruler.word_lists import listed_words


@dataclass(frozen=True)
class Sources:
    """What prompts are made of beside lists of words.

    Attributes:
        essays: text between needles, which five tasks need.
        questions: for the tasks that ask them.
    """

    essays: Essays | None = None
    questions: Mapping[QuestionTask, Questions] = field(default_factory=dict)


@dataclass(frozen=True)
class Composition:
    """Makes a prompt with a given number of units of haystack from the given random numbers.

    Attributes:
        compose: the prompt of a size; whole sizes are lm-eval's, a fraction cuts the last unit.
        smallest: the fewest units.
        largest: the most units, where they end.
    """

    compose: Callable[[float, Draws], Prompt]
    smallest: int = 1
    largest: int | None = None


def composition(
    task: RulerTask, length: int, index: int, *, sources: Sources, example: Callable[[], str]
) -> Composition:
    """Returns how prompt `index` of a task at a length is composed; `example` is that of variable tracking.

    Raises:
        EspanError: it needs essays, questions or more questions than there are.
    """
    if task == "vt":
        return Composition(partial(variable_prompt, example=example()))
    if task == "cwe":
        return Composition(partial(common_words_prompt, length), COMMON + 1, len(listed_words()))
    if task == "fwe":
        return Composition(partial(coded_words_prompt, length), FEWEST_CODED)
    if task == "qa_squad" or task == "qa_hotpot":
        return _of_question(task, index, sources)
    needles = NEEDLES[task]
    if needles.haystack == "essay" and sources.essays is None:
        raise EspanError(f"RULER's {task} needs essays: name a folder of text files (*.txt)")
    return Composition(partial(needle_prompt, needles, essays=sources.essays))


def _of_question(task: QuestionTask, index: int, sources: Sources) -> Composition:
    if task not in sources.questions:
        raise EspanError(f"RULER's {task} needs a file of questions; name one, or leave the task out")
    questions = sources.questions[task]
    if index >= len(questions.questions):
        there = f"{len(questions.questions)} questions, too few for {index + 1} samples of {task}"
        raise EspanError(f"questions {questions.place}: there are {there}; ask for fewer")
    answering = len(questions.questions[index].documents)
    return Composition(partial(question_prompt, questions, index), answering, len(questions.documents))
