"""Writes a run's report: one page about everything that it has done so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.context import Context
from pipelines.recipe.keys.report import ReportKeys
from pipelines.report.page import render
from pipelines.report.records import read_run
from pipelines.system import storage

PAGE = "report.html"


def run(keys: ReportKeys, context: Context) -> Mapping[str, Any]:
    """Writes `report.html` into the stage's folder."""
    page = storage.join(context.output, PAGE)
    record = read_run(context.workspace, context.recipe)
    storage.write_text_atomic(page, render(record))
    return {"headline": PAGE, "page": page}


def build(workspace: str) -> str:
    """Writes `report.html` into a run's workspace, from whatever stages have finished, and returns its path.

    Raises:
        EspanError: no stage has finished there.
    """
    page = storage.join(workspace, PAGE)
    storage.write_text_atomic(page, render(read_run(workspace)))
    return page
