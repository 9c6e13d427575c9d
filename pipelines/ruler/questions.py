"""Questions about documents, of which few matter: RULER's tasks `qa_squad` and `qa_hotpot`.

The template is RULER's; what is drawn, and in which order, is as in lm-eval 0.4.13, `qa_utils.py` of
`tasks/ruler`. Questions and documents come from files as SQuAD 2.0 and HotpotQA publish them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipelines.errors import EspanError, one_line
from pipelines.recipe.keys.ruler import QuestionTask
from pipelines.ruler.draws import Draws, shuffled
from pipelines.ruler.prompts import Prompt, beginning, divide
from pipelines.system import storage

_ORDER = "Answer the question based on the given documents. "
_ORDER += "Only give me the answer and do not output any other words."
_TEMPLATE = (
    f"{_ORDER}\n\nThe following are given documents.\n\n{{context}}\n\n{_ORDER}\n\nQuestion: {{question}}"
)
_ANSWER = "Answer:"


@dataclass(frozen=True)
class Question:
    """A question, its right answers, the documents that answer it, and those preferred as noise."""

    text: str
    answers: list[str]
    documents: list[int]
    related: list[int]


@dataclass(frozen=True)
class Questions:
    """Questions and the documents they are about."""

    place: str
    questions: list[Question]
    documents: list[str]

    @property
    def sha256(self) -> str:
        """The hash of all of them."""
        content = json.dumps([[vars(each) for each in self.questions], self.documents])
        return hashlib.sha256(content.encode()).hexdigest()


def question_prompt(questions: Questions, index: int, size: float, draws: Draws) -> Prompt:
    """Returns question `index` behind `size` documents, at least those that answer it.

    A fraction of a document, never of one that answers, is its beginning.
    """
    question = questions.questions[index]
    answering = [questions.documents[number] for number in question.documents]
    documents = shuffled(_chosen(questions, question, size, draws))
    context = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(documents, start=1))
    return Prompt(
        input=_TEMPLATE.format(context=context, question=question.text),
        gen_prefix=_ANSWER,
        outputs=question.answers,
        asked=tuple(answering) if len(answering) == 1 else (),
    )


def read_questions(task: QuestionTask, place: str) -> Questions:
    """Returns the questions in a JSON file, or in the JSON files of a folder one after the other.

    Raises:
        EspanError: names the file, and says what it should be.
    """
    read, format_name = _FORMATS[task]
    try:
        parts = [json.loads(storage.read_bytes(file)) for file in _files(place)]
        questions = read(place, parts)
    except OSError as error:
        raise EspanError(f"questions {place}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"not the JSON of {format_name}: {type(error).__name__}: {one_line(error)}"
        raise EspanError(f"questions {place}: {what}; give the file as it is published") from error
    if not questions.questions:
        raise EspanError(f"questions {place}: no question that has an answer; give {format_name}")
    return questions


def _chosen(questions: Questions, question: Question, size: float, draws: Draws) -> list[str]:
    whole, fraction = divide(size)
    every, known = questions.documents, [*question.documents, *question.related]
    if whole >= len(every):
        return every
    count = whole + bool(fraction)
    if count - len(question.documents) > len(question.related):
        taken = set(known)
        others = [number for number in range(len(every)) if number not in taken]
        numbers = known + draws.choices.sample(others, count - len(known))
    else:
        more = count - len(question.documents)
        numbers = question.documents + draws.choices.sample(question.related, more)
    chosen = [every[number] for number in numbers]
    if fraction:
        rest = beginning(chosen.pop(), fraction)
        chosen += [rest] if rest else []
    return chosen


def _files(place: str) -> list[str]:
    if not storage.is_folder(place):
        return [place]
    names = sorted(name for name in storage.list_names(place) if name.endswith(".json"))
    if not names:
        raise EspanError(f"questions {place}: the folder holds no JSON file (*.json)")
    return [storage.join(place, name) for name in names]


def _squad(place: str, parts: Iterable[Any]) -> Questions:
    articles = [article["paragraphs"] for part in parts for article in part["data"]]
    documents, number = _numbered(paragraph["context"] for article in articles for paragraph in article)
    questions = []
    for article in articles:
        numbers = [number[paragraph["context"]] for paragraph in article]
        for paragraph, own in zip(article, numbers, strict=True):
            related = [each for each in numbers if each != own]
            questions += [
                Question(asked["question"], [each["text"] for each in asked["answers"]], [own], related)
                for asked in paragraph["qas"]
                if not asked.get("is_impossible", False)
            ]
    return Questions(place, questions, documents)


def _hotpot(place: str, parts: Iterable[Any]) -> Questions:
    asked = [each for part in parts for each in part]
    texts = [[f"{title}\n{''.join(lines)}" for title, lines in each["context"]] for each in asked]
    documents, number = _numbered(text for own in texts for text in own)
    questions = [
        Question(each["question"], [each["answer"]], [number[text] for text in own], [])
        for each, own in zip(asked, texts, strict=True)
    ]
    return Questions(place, questions, documents)


def _numbered(texts: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    documents = sorted(set(texts))
    return documents, {text: number for number, text in enumerate(documents)}


_FORMATS: dict[QuestionTask, tuple[Callable[[str, Iterable[Any]], Questions], str]] = {
    "qa_squad": (_squad, "SQuAD 2.0 (dev-v2.0.json)"),
    "qa_hotpot": (_hotpot, "HotpotQA (hotpot_dev_distractor_v1.json)"),
}
