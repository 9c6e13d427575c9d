"""What can be said of an export before anything starts: whether it can be written, and what that takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.context import Check, CheckContext
from pipelines.errors import InvalidKeyError
from pipelines.models.configuration import Described
from pipelines.models.files import configuration_folder, local_folder
from pipelines.models.references import check_model, external_files, plan_of_model, resolve_model
from pipelines.recipe.keys.export import ExportKeys
from pipelines.recipe.keys.train import TrainKeys
from pipelines.system.machine import bytes_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def external_inputs(keys: ExportKeys) -> tuple[str, ...]:
    """The model's files."""
    return external_files(keys.model)


def check(keys: ExportKeys, context: CheckContext) -> None:
    """Refuses a missing model, an adapter where everything trained, and scores that are not there."""
    check_model("model", keys.model, context)
    earlier = context.earlier.get(keys.model)
    trained = None if earlier is None else earlier.keys
    if "adapter" in keys.forms and isinstance(trained, TrainKeys) and trained.hylora is None:
        raise InvalidKeyError(
            "format", f"stage '{keys.model}' trained every parameter, so it has no adapter; use merged"
        )
    for index, name in enumerate(keys.scores):
        context.require_stage_or_path(f"scores.{index}", name, kinds=("evaluate",))


def plan(keys: ExportKeys, context: CheckContext) -> Mapping[str, str]:
    """What is written of which model, in which type, and how much memory that takes."""
    return plan_of_model(keys.model, context) | {
        "writes": ", ".join(f"{context.output}/{form}" for form in keys.forms),
        "precision": keys.precision or "the base model's own",
        **({} if context.finished else {"memory": _memory(keys, context)}),
    }


def _memory(keys: ExportKeys, context: CheckContext) -> str:
    reference = keys.model
    while reference in context.earlier:
        trained = context.earlier[reference].keys
        if not isinstance(trained, TrainKeys) or not isinstance(trained.model, str):
            return "known when the model is there"
        reference = trained.model
    source = resolve_model(reference, {})

    def needed(_: PreTrainedConfig) -> int:
        from pipelines.export.memory import task_bytes

        return task_bytes(source)[0]

    # Nothing but the base's configuration counts.
    base = Described.in_folder(configuration_folder(source.base) or local_folder(source.base))
    return f"a task on the cluster that reserves {bytes_text(base.remembered('export', None, needed))}"


CHECK = Check(check=check, plan=plan, external_inputs=external_inputs)
