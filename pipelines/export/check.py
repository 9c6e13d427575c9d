"""The keys of an export stage: which model, in which form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pipelines.errors import InvalidKeyError
from pipelines.models.configuration import Described
from pipelines.models.files import configuration_folder, local_folder
from pipelines.models.references import check_model, external_files, plan_of_model, resolve_model
from pipelines.recipe.keys.section import CheckContext, Context, Stage
from pipelines.recipe.path_keys import MODEL, Reference
from pipelines.system.machine import bytes_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Form = Literal["merged", "adapter"]


class ExportStage(Stage):
    """The keys below `export:`.

    Attributes:
        model: a train stage, or a folder with a model.
        format: `merged`: one checkpoint, the adapter folded into the weights; `adapter`: what trained, as
            PEFT stores
            it, to be loaded over the base model; or both.
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

    def external_inputs(self) -> tuple[str, ...]:
        """The model's files."""
        return external_files(self.model)

    def check(self, context: CheckContext) -> None:
        """Refuses a missing model, an adapter where everything trained, and scores that are not there."""
        check_model("model", self.model, context)
        earlier = context.earlier.get(self.model)
        if "adapter" in self.forms and earlier is not None and getattr(earlier.stage, "hylora", None) is None:
            raise InvalidKeyError(
                "format", f"stage '{self.model}' trained every parameter, so it has no adapter; use merged"
            )
        for index, name in enumerate(self.scores):
            context.require_stage_or_path(f"scores.{index}", name, kinds=("evaluate",))

    def plan(self, context: CheckContext) -> Mapping[str, str]:
        """What is written of which model, in which type, and how much memory that takes."""
        return plan_of_model(self.model, context) | {
            "writes": ", ".join(f"{context.output}/{form}" for form in self.forms),
            "precision": self.precision or "the base model's own",
            **({} if context.finished else {"memory": self._memory(context)}),
        }

    def _memory(self, context: CheckContext) -> str:
        reference: Any = self.model
        while reference in context.earlier:
            reference = getattr(context.earlier[reference].stage, "model", None)
            if not isinstance(reference, str):
                return "known when the model is there"
        source = resolve_model(reference, {})

        def needed(_: PreTrainedConfig) -> int:
            from pipelines.export.run import task_bytes

            return task_bytes(source)[0]

        # Nothing but the base's configuration counts.
        base = Described.in_folder(configuration_folder(source.base) or local_folder(source.base))
        return f"a task on the cluster that reserves {bytes_text(base.remembered('export', None, needed))}"


def run(stage: ExportStage, context: Context) -> Mapping[str, Any]:
    """Writes each form into its own folder; loaded again, it must give the trained model's logits."""
    from pipelines.export.run import export_in_task

    written = export_in_task(stage, context)
    headline = ", ".join(
        f"{each['format']} ({each['precision']}, logits within {each['largest_difference']:.1e})"
        for each in written
    )
    return {"headline": headline, "written": written}
