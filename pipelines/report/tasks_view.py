"""What needle probes and RULER's tasks found, as parts of the page: by length, by task and by depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.evaluate.scores import Mean, TaskMeasure, TaskScore
from pipelines.report import charts
from pipelines.report.blocks import (
    Block,
    Chart,
    HeatCell,
    HeatMap,
    HeatRow,
    HeatScale,
    Row,
    Section,
    Table,
    TableRow,
)
from pipelines.report.evaluations import Evaluation
from pipelines.report.legend import legend
from pipelines.report.text import between, ends, percent, tokens, words

# Above this many maps the eye compares columns of the table better than colours.
_MOST_HEAT_MAPS = 8


@dataclass(frozen=True)
class _Words:
    """What the page says about a measure."""

    title: str
    text: str
    mean: str


_WORDS: Mapping[TaskMeasure, _Words] = {
    "recall": _Words(
        "Recall",
        "The share of expected answers that the model gives, when each stands once, somewhere in a long "
        "text, and is asked for at its end.",
        "Mean recall by context length",
    ),
    "ruler": _Words(
        "RULER",
        "The share of expected strings that the model writes, in the tasks of RULER (Hsieh et al., 2024): "
        "needles, variables that take their values from others, words to be counted, questions.",
        "Mean RULER score by context length",
    ),
}


def tasks_section(measure: TaskMeasure, found: Sequence[Evaluation]) -> Section | None:
    """One measure by length, by task and by depth; None where nothing took it."""
    measured = [each for each in found if each.scores.lengths(measure)]
    if not measured:
        return None
    says = _WORDS[measure]
    series = [
        charts.Series(
            each.label,
            each.scores.lengths(measure),
            [mean.value for mean in _means(each, measure)],
            [mean.interval for mean in _means(each, measure)],
            each.colour,
        )
        for each in measured
    ]
    picture = charts.by_length(series, label=says.mean, fraction=True, size="wide")
    samples = measured[-1].scores.of(measure)[0].samples
    note = f"{samples} prompts per task and length; bars are 95% intervals."
    shown = measured[:_MOST_HEAT_MAPS]
    blocks: list[Block] = [
        Row([Chart("Mean of all tasks", picture, note, legend(measured))]),
        Row([_heat_map(each, measure) for each in shown], across=2),
    ]
    if any(score.group for each in shown for score in each.scores.of(measure)):
        blocks.append(Row([_heat_map(each, measure, every_task=True) for each in shown], across=2))
    by_depth = [drawn for each in shown if (drawn := _depth_map(each, measure))]
    if by_depth:
        blocks.append(Row(by_depth, across=2))
    blocks.append(HeatScale("the answers given"))
    blocks.append(Row([_table(measured, measure)]))
    return Section(measure, says.title, says.text, blocks)


def _heat_map(each: Evaluation, measure: TaskMeasure, *, every_task: bool = False) -> HeatMap:
    """By group of tasks, or by task where these have no groups or `every_task` is asked for, and length."""
    scores, lengths = each.scores, each.scores.lengths(measure)
    members: dict[str, list[str]] = {}
    for score in scores.of(measure):
        name = score.task if every_task else score.group or score.task
        if score.task not in members.setdefault(name, []):
            members[name].append(score.task)
    rows = [
        HeatRow(
            words(name),
            [
                _cell([found for task in tasks if (found := scores.score_at(measure, task, length))])
                for length in lengths
            ],
        )
        for name, tasks in members.items()
    ]
    means = [
        HeatCell(mean.value, percent(mean.value), f"mean of the tasks; 95%: {between(mean.interval, 1)}")
        for mean in _means(each, measure)
    ]
    rows.append(HeatRow("mean", means, mean=True))
    title = f"{each.stage}, every task" if every_task else each.stage
    note = f"{scores.model}, {words(str(scores.attention['kind']))} attention"
    return HeatMap(title, note, [tokens(length) for length in lengths], rows, "task", folded=every_task)


def _cell(scores: Sequence[TaskScore]) -> HeatCell:
    """The mean of some tasks' scores; of one, with its interval."""
    if not scores:
        return HeatCell(None)
    value = math.fsum(score.value for score in scores) / len(scores)
    title = f"{percent(value, 1)}, mean of {', '.join(words(score.task) for score in scores)}"
    if len(scores) == 1:
        interval = between(scores[0].interval, 1)
        title = f"{percent(value, 1)} in {scores[0].samples} prompts; 95%: {interval}"
    return HeatCell(value, percent(value), title)


def _depth_map(each: Evaluation, measure: TaskMeasure) -> HeatMap | None:
    """By depth of the needle and by length, over all tasks; None where no task knows depths."""
    scores, lengths = each.scores, each.scores.lengths(measure)
    sums: dict[tuple[float, float], dict[int, tuple[float, int]]] = {}
    for score in scores.of(measure):
        for depth in score.depths if score.length is not None else ():
            at_depth = sums.setdefault((depth.low, depth.high), {})
            total, count = at_depth.get(score.length or 0, (0.0, 0))
            at_depth[score.length or 0] = total + depth.value * depth.samples, count + depth.samples
    if not sums:
        return None
    rows = [
        HeatRow(
            f"{low * 100:.0f}–{high * 100:.0f}%",
            [_depth_cell(*sums[low, high].get(length, (0.0, 0))) for length in lengths],
        )
        for low, high in sorted(sums)
    ]
    note = "Where the needle stands: 0% is the beginning of the prompt, 100% its end. All tasks that know it."
    return HeatMap(f"{each.stage}, by depth", note, [tokens(length) for length in lengths], rows, "depth")


def _depth_cell(total: float, answers: int) -> HeatCell:
    if not answers:
        return HeatCell(None)
    value = total / answers
    return HeatCell(value, percent(value), f"{percent(value, 1)} of {answers} answers")


def _table(measured: Sequence[Evaluation], measure: TaskMeasure) -> Table:
    lengths = sorted({length for each in measured for length in each.scores.lengths(measure)})
    rows = [
        TableRow([each.label, *(_mean_text(each.scores.mean_at(measure, length)) for length in lengths)])
        for each in measured
    ]
    columns = ["mean of all tasks", *(tokens(length) for length in lengths)]
    note = "In brackets the ends of the 95% intervals, in percent."
    return Table(columns, rows, "Side by side", note, numeric=range(1, len(columns)))


def _mean_text(mean: Mean | None) -> str:
    return "–" if mean is None else f"{percent(mean.value, 1)} ({ends(mean.interval)})"


def _means(each: Evaluation, measure: TaskMeasure) -> list[Mean]:
    """The mean over the tasks at each of the evaluation's lengths."""
    found = (each.scores.mean_at(measure, length) for length in each.scores.lengths(measure))
    return [mean for mean in found if mean]
