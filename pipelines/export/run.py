"""Exporting on the cluster: in a task that reserves the memory it needs, not where the recipe runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from pipelines.export.check import ExportStage
from pipelines.export.write import PROBE_ROWS, PROBE_TOKENS, export
from pipelines.models.merging import merge_bytes
from pipelines.models.references import ModelSource, resolve_model
from pipelines.models.weights.write import NotTensorByTensor
from pipelines.recipe.keys.section import Context
from pipelines.system.progress import Progress
from pipelines.system.reserved_tasks import give_memory_back, run_reserved


def export_in_task(stage: ExportStage, context: Context) -> list[dict[str, Any]]:
    """Runs `pipelines.export.write.export` in a task on the cluster.

    Raises:
        EspanError: as `export`, or there is too little memory.
    """
    label = f"{context.name}: export"
    progress = context.progress
    context = replace(context, progress=cast(Progress, None))  # it belongs to this process's terminal
    layer, everything = task_bytes(resolve_model(stage.model, context.inputs))
    try:
        return run_reserved(_export, stage, context, False, memory=layer, label=label, progress=progress)
    except NotTensorByTensor as reason:
        progress.message(f"{label}: {reason}: the whole model is loaded for it")
        return run_reserved(_export, stage, context, True, memory=everything, label=label, progress=progress)


def task_bytes(source: ModelSource) -> tuple[int, int]:
    """Returns the memory that an export needs, with one layer there and with the whole model, in bytes."""
    return merge_bytes(source, forward_tokens=PROBE_ROWS * PROBE_TOKENS)


def _export(stage: ExportStage, context: Context, whole: bool) -> list[dict[str, Any]]:
    give_memory_back()
    return export(stage, replace(context, progress=Progress()), whole)
