"""The keys of an export stage: which model, in which form."""

from __future__ import annotations

from typing import Annotated, Literal

from pipelines.recipe.keys.section import StageKeys
from pipelines.recipe.path_keys import MODEL, Reference

Form = Literal["merged", "adapter"]


class ExportKeys(StageKeys):
    """The keys below `export:`.

    Attributes:
        model: a train stage, or a folder with a model.
        format: `merged`: one checkpoint, the adapter folded into the weights; `adapter`: what trained, as
            PEFT stores it, to be loaded over the base model; or both.
        scores: evaluate stages whose results the model card shows.
        precision: of a merged checkpoint's weights; by default each has the type of the base model's.
    """

    model: Annotated[str, MODEL]
    format: Literal["merged", "adapter", "both"] = "merged"
    scores: Annotated[tuple[str, ...], Reference(stage=True)] = ()
    precision: Literal["fp32", "bf16"] | None = None

    @property
    def forms(self) -> tuple[Form, ...]:
        """What is written."""
        return ("merged", "adapter") if self.format == "both" else (self.format,)

    def references(self) -> tuple[str, ...]:
        """The model and the scores."""
        return (self.model, *self.scores)
