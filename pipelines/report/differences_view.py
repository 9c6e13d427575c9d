"""Paired differences between evaluations, as a part of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.evaluate.scores import Comparison, Difference, TaskMeasure
from pipelines.report import charts
from pipelines.report.blocks import Block, Chart, Heading, LegendEntry, Row, Section, Table, TableRow
from pipelines.report.differences_text import CAPTION, NUMERIC, cells_of, columns_of, left_out
from pipelines.report.evaluations import Evaluation, Pairs, mean_rows
from pipelines.report.svg import SERIES_COLOURS

_TONES = {"better": "good", "worse": "bad"}
_CHARTED: Mapping[TaskMeasure, str] = {"ruler": "RULER", "recall": "Recall"}


def differences_section(found: Sequence[Evaluation], pairs: Pairs) -> Section | None:
    """How each evaluation differs from the first, or why nobody knows; None where no prompt is shared."""
    if not pairs.comparisons:
        text = f"Not compared prompt by prompt: {pairs.problem}."
        return Section("differences", "Differences", text) if pairs.problem else None
    blocks: list[Block] = []
    charted = (_chart(measure, title, found, pairs.comparisons) for measure, title in _CHARTED.items())
    blocks += [Row([chart]) for chart in charted if chart]
    for comparison in pairs.comparisons:
        means = [row for measure in _CHARTED for row in mean_rows(measure, comparison)]
        summary = [*means, *(row for row in comparison.rows if row.measure == "perplexity")]
        heading = f"{comparison.label} against {comparison.baseline}"
        blocks.append(Heading(heading, " ".join(left_out(comparison))))
        if summary:
            blocks.append(Row([_table(comparison, summary, "In short")]))
        tasks = [row for row in comparison.rows if row not in summary]
        if tasks:
            blocks.append(Row([_table(comparison, tasks, "Every task and group", folded=bool(summary))]))
    text = f"The same prompts, paired one by one. {CAPTION}"
    if pairs.problem:
        text += f" Not everything could be compared: {pairs.problem}."
    return Section("differences", "Differences", text, blocks)


def _chart(
    measure: TaskMeasure, title: str, found: Sequence[Evaluation], comparisons: Sequence[Comparison]
) -> Chart | None:
    """The mean difference of each evaluation by length; None where it was not measured."""
    series = []
    for comparison in comparisons:
        rows = mean_rows(measure, comparison)
        colour = next(each.colour for each in found if each.stage == comparison.label)
        if rows:
            lengths, values, intervals = zip(
                *((row.length or 0, row.difference, row.interval) for row in rows), strict=True
            )
            series.append(charts.Series(comparison.label, lengths, values, intervals, colour))
    if not series:
        return None
    baseline = comparisons[0].baseline
    picture = charts.by_length(
        series, label=f"Difference in {title} from {baseline} by context length", difference=True, size="wide"
    )
    entries = [LegendEntry(each.label, each.colour % SERIES_COLOURS) for each in series]
    note = f"Percentage points above or below {baseline}, mean of all tasks; bars are 95% intervals."
    return Chart(f"{title}, difference from {baseline}", picture, note, entries)


def _table(comparison: Comparison, rows: Sequence[Difference], title: str, folded: bool = False) -> Table:
    body = [TableRow(cells_of(row), tone=_TONES.get(row.verdict, "")) for row in rows]
    return Table(columns_of(comparison), body, title, numeric=NUMERIC, folded=folded)
