"""Keys about synthetic documents: what a training document looks like, and which recall tasks there are."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

RecallTask = Literal["single", "multi_key", "multi_query", "variable_tracking"]
RECALL_TASKS: tuple[RecallTask, ...] = get_args(RecallTask)

NEEDLES = "needles"
"""What manifests call a source of these documents."""

# As `pipelines.needles` writes them, which a recipe is read without; a test holds these numbers to it.
SENTENCE_WORDS = 5
MOST_KEYS = 64


class NeedleDocuments(BaseModel):
    """What a training document looks like: its length, how many needles it holds, what is asked of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Annotated[
        int, Field(ge=16, description="length of a document in words, the needles and questions included")
    ]
    needles: Annotated[
        int, Field(ge=1, description="the most keys with a value of their own in a document")
    ] = 8
    questions: Annotated[int, Field(ge=0, description="how often a value is asked for")] = 4
    links: Annotated[int, Field(ge=0, description="keys that take their value from another key")] = 0
    ask: Annotated[
        Literal["end", "anywhere"],
        Field(description="where the questions stand: after everything else, or anywhere after their needle"),
    ] = "end"

    @model_validator(mode="after")
    def _fits(self) -> NeedleDocuments:
        least = (self.needles + self.questions + self.links) * SENTENCE_WORDS
        if least > self.tokens:
            raise ValueError(
                f"{self.needles} needles, {self.links} links and {self.questions} questions take {least} "
                f"words, more than tokens = {self.tokens}"
            )
        if self.needles + self.links > MOST_KEYS:
            raise ValueError(
                f"{self.needles} needles and {self.links} links: there are only {MOST_KEYS} different keys"
            )
        return self
