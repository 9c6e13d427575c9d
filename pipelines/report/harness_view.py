"""What tasks of lm-eval found, and how fast everything was scored, as parts of the page."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.report.blocks import Row, Section, Table, TableRow
from pipelines.report.evaluations import Evaluation
from pipelines.report.text import compact, count, duration, words

_MOST_ROWS = 20
"""A longer table is folded."""


def harness_section(found: Sequence[Evaluation]) -> Section | None:
    """Every metric of every task; None where there are none."""
    measured = [each for each in found if each.scores.of("harness")]
    if not measured:
        return None
    cells = {
        each.stage: {(score.task, score.metric): score for score in each.scores.of("harness")}
        for each in measured
    }
    names = list(dict.fromkeys(name for each in measured for name in cells[each.stage]))
    groups = {score.task: score.group or "" for each in measured for score in each.scores.of("harness")}
    grouped = any(groups.values())
    rows = []
    for task, metric in names:
        numbers = []
        for each in measured:
            score = cells[each.stage].get((task, metric))
            low_high = f" ({score.interval.low:.3f}–{score.interval.high:.3f})" if score else ""
            numbers.append(f"{score.value:.3f}{low_high}" if score else "–")
        rows.append(TableRow([task, *([groups[task]] if grouped else []), metric, *numbers]))
    columns = ["task", *(["group"] if grouped else []), "metric", *(each.stage for each in measured)]
    numeric = range(len(columns) - len(measured), len(columns))
    table = Table(columns, rows, f"{len(rows)} metrics", numeric=numeric, folded=len(rows) > _MOST_ROWS)
    text = "Metrics as lm-eval computes them; in brackets, 95% intervals over the tasks' documents."
    return Section("harness", "Tasks of lm-eval", text, [Row([table])])


def throughput_table(found: Sequence[Evaluation]) -> Table | None:
    """How fast each measure of each evaluation was scored; None where nobody noted it."""
    rows = [
        TableRow(
            [
                each.stage,
                words(speed.measure),
                count(speed.prompts),
                compact(speed.tokens),
                duration(speed.seconds),
                compact(speed.tokens_per_second),
            ]
        )
        for each in found
        for speed in each.scores.throughput
    ]
    if not rows:
        return None
    columns = ["evaluation", "measure", "prompts", "tokens", "workers' time", "tokens per second of a worker"]
    return Table(columns, rows, "How fast it was scored", numeric=range(2, 6), folded=True)
