"""Which colour stands for which evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.report.blocks import LegendEntry
from pipelines.report.evaluations import Evaluation
from pipelines.report.svg import SERIES_COLOURS


def legend(found: Sequence[Evaluation]) -> list[LegendEntry]:
    """Returns the legend of a chart with a line for each evaluation."""
    return [LegendEntry(each.label, each.colour % SERIES_COLOURS) for each in found]
