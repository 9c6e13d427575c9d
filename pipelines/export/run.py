"""Exporting on the cluster: in a task that reserves the memory it needs, not where the recipe runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from pipelines.context import Context
from pipelines.export.memory import task_bytes
from pipelines.export.write import export
from pipelines.models.references import resolve_model
from pipelines.models.weights.write import NotTensorByTensor
from pipelines.recipe.keys.export import ExportKeys
from pipelines.system.progress import Progress
from pipelines.system.reserved_tasks import give_memory_back, run_reserved


def run(keys: ExportKeys, context: Context) -> Mapping[str, Any]:
    """Writes each form into its own folder; loaded again, it must give the trained model's logits.

    Raises:
        EspanError: it does not, or there is too little memory.
    """
    written = export_in_task(keys, context)
    headline = ", ".join(
        f"{each['format']} ({each['precision']}, logits within {each['largest_difference']:.1e})"
        for each in written
    )
    return {"headline": headline, "written": written}


def export_in_task(keys: ExportKeys, context: Context) -> list[dict[str, Any]]:
    """Runs `pipelines.export.write.export` in a task on the cluster.

    Raises:
        EspanError: as `export`, or there is too little memory.
    """
    label = f"{context.name}: export"
    progress = context.progress
    context = replace(context, progress=cast(Progress, None))  # it belongs to this process's terminal
    layer, everything = task_bytes(resolve_model(keys.model, context.inputs))
    try:
        return run_reserved(_export, keys, context, False, memory=layer, label=label, progress=progress)
    except NotTensorByTensor as reason:
        progress.message(f"{label}: {reason}: the whole model is loaded for it")
        return run_reserved(_export, keys, context, True, memory=everything, label=label, progress=progress)


def _export(keys: ExportKeys, context: Context, whole: bool) -> list[dict[str, Any]]:
    give_memory_back()
    return export(keys, replace(context, progress=Progress()), whole)
