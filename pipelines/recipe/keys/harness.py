"""Keys about tasks of lm-eval."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from pipelines.recipe.keys.common import distinct
from pipelines.recipe.keys.section import Section
from pipelines.recipe.path_keys import Reference

TASK_LISTS: dict[str, tuple[str, ...]] = {
    "paper_short": ("arc_challenge", "arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande"),
    "paper_long": ("swde", "squad_completion", "scrolls_narrativeqa"),
}
"""Names for several of lm-eval's tasks: as we read the paper's averages over short and over long texts."""


class HarnessSection(Section):
    """Tasks of lm-eval, the language model evaluation harness.

    Attributes:
        tasks: names of tasks, groups or tags of lm-eval's; or `paper_short` and `paper_long`, the tasks over
            which the paper averages.
        include: a folder of task files (YAML) of your own, which come before lm-eval's of the same name.
        limit: the most documents of each task.
        fewshot: examples before each question; default: as each task says.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    include: Annotated[str | None, Reference()] = None
    limit: PositiveInt | None = None
    fewshot: NonNegativeInt | None = None

    @field_validator("tasks")
    @classmethod
    def _no_repetition(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return distinct(values)
