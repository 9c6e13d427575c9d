"""The report stage: one page about everything the run has done so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.recipe.keys.section import ALL_EARLIER, Context, Stage
from pipelines.system import storage

PAGE = "report.html"


class ReportStage(Stage):
    """The keys below `report:`; there are none."""

    def references(self) -> tuple[str, ...]:
        """Everything before it."""
        return (ALL_EARLIER,)


def run(stage: ReportStage, context: Context) -> Mapping[str, Any]:
    """Writes `report.html` into the stage's folder."""
    from pipelines.report.page import render
    from pipelines.report.records import read_run

    page = storage.join(context.output, PAGE)
    record = read_run(context.workspace, context.recipe.as_dict())
    storage.write_text_atomic(page, render(record))
    return {"headline": PAGE, "page": page}


def build(workspace: str) -> str:
    """Writes `report.html` into a run's workspace, from whatever stages have finished, and returns its path.

    Raises:
        EspanError: no stage has finished there.
    """
    from pipelines.report.page import render
    from pipelines.report.records import read_run

    page = storage.join(workspace, PAGE)
    storage.write_text_atomic(page, render(read_run(workspace)))
    return page
