"""Keys about RULER's prompts: which tasks there are, how they are grouped, and what a section asks for."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.common import Lengths, distinct
from pipelines.recipe.keys.section import Section
from pipelines.recipe.path_keys import TOKENIZER, Reference

NeedleTask = Literal[
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
]
CountTask = Literal["vt", "cwe", "fwe"]
QuestionTask = Literal["qa_squad", "qa_hotpot"]
RulerTask = NeedleTask | CountTask | QuestionTask

RULER = "ruler"
"""What manifests call a source of documents of these tasks."""

RULER_TASKS: tuple[NeedleTask | CountTask, ...] = (*get_args(NeedleTask), *get_args(CountTask))
"""The eleven tasks whose mean the paper reports; questions (`qa_...`) need data that is not shipped."""

RULER_GROUPS: dict[RulerTask, str] = {
    "niah_single_1": "NIAH-S",
    "niah_single_2": "NIAH-S",
    "niah_single_3": "NIAH-S",
    "niah_multikey_1": "NIAH-M",
    "niah_multikey_2": "NIAH-M",
    "niah_multikey_3": "NIAH-M",
    "niah_multivalue": "NIAH-M-QV",
    "niah_multiquery": "NIAH-M-QV",
    "vt": "VT",
    "cwe": "CF-WE",
    "fwe": "CF-WE",
    "qa_squad": "QA",
    "qa_hotpot": "QA",
}
"""The group under which the paper reports a task (appendix I); it leaves the questions out."""


class RulerDocuments(Section):
    """What a training document looks like: a prompt of RULER's, and the right answer behind it.

    Attributes:
        tokens: length of a document in tokens, its answer included; documents are up to 1% shorter.
        tasks: RULER's tasks, which take turns. Questions (`qa_...`) are not among them: there is one file of
            each, the one that evaluations ask from.
        essays: a folder of text files (`*.txt`), the text between needles; default: the four messages of
            Lincoln's that evaluations take as well.
    """

    tokens: Annotated[int, Field(ge=64)]
    tasks: Annotated[tuple[NeedleTask | CountTask, ...], Field(min_length=1)] = RULER_TASKS
    essays: Annotated[str | None, Reference()] = None

    @field_validator("tasks")
    @classmethod
    def _no_repetition(cls, tasks: tuple[Any, ...]) -> tuple[Any, ...]:
        return distinct(tasks)


class RulerSection(Section):
    """RULER: `samples` prompts of every task at every length.

    Attributes:
        lengths: tokens in a prompt, the room for its answer included.
        tasks: which of RULER's tasks; `qa_squad` and `qa_hotpot` need a file of questions.
        samples: prompts of each task at each length.
        essays: a folder of text files (`*.txt`), the text between needles; default: four messages of
            Lincoln's that ship with the package. Text shorter than a prompt repeats from its start.
        squad: the questions of `qa_squad`, as SQuAD 2.0 publishes them (`dev-v2.0.json`).
        hotpot: the questions of `qa_hotpot`, as HotpotQA publishes them (`hotpot_dev_distractor_v1.json`).
        tokenizer: tokenizer by which prompts are measured; default: the model's own.
    """

    lengths: Lengths
    tasks: Annotated[tuple[RulerTask, ...], Field(min_length=1)] = RULER_TASKS
    samples: PositiveInt = 100
    essays: Annotated[str | None, Reference()] = None
    squad: Annotated[str | None, Reference()] = None
    hotpot: Annotated[str | None, Reference()] = None
    tokenizer: Annotated[str | None, TOKENIZER] = None

    @field_validator("lengths", "tasks")
    @classmethod
    def _no_repetition(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return distinct(values)

    @model_validator(mode="after")
    def _has_questions(self) -> RulerSection:
        for task, key in (("qa_squad", "squad"), ("qa_hotpot", "hotpot")):
            if task in self.tasks and getattr(self, key) is None:
                raise InvalidKeyError(key, f"task {task} needs a file of questions; name it here")
        return self
