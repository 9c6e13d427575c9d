"""What differs between two evaluations, prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipelines.evaluate.scores.file import Scores
from pipelines.evaluate.scores.records import Measure
from pipelines.evaluate.scores.samples import Sample, read_samples
from pipelines.statistics import Bootstrap, Interval, holm, paired

_REAL = 0.05
_MEANT_OVER_TASKS: frozenset[Measure] = frozenset({"recall", "ruler"})
"""Measures whose tasks all have the same metric, so that a mean over all of them means something."""

_Prompt = tuple[str, str, int | None, int]
_Row = tuple[Measure, str, int | None, str]
"""Measure, task, length and metric."""
_Values = dict[_Row, dict[int, float]]
"""By row, and in it by the prompt's index."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that is compared: what it is called, its scores, and its prompts."""

    label: str
    scores: Scores
    samples: Sequence[Sample] = field(repr=False)

    @classmethod
    def read(cls, folder: str, label: str) -> Evaluated:
        """Reads the folder of an evaluate stage.

        Raises:
            EspanError: there is no evaluation, or an old one that does not say which prompts it scored.
        """
        return cls(label, Scores.read(folder), read_samples(folder))


@dataclass(frozen=True)
class Difference:
    """One row: a metric of one task, of a group's tasks or of all tasks, at one length.

    Attributes:
        task: None for the mean over the tasks of `group`, or over all tasks where that is None, too.
        prompts: pairs that are compared.
        baseline, value: means over these pairs.
        difference: `value` less `baseline`.
        interval: of `difference`, by bootstrap over the pairs.
        probability: of a difference this large by chance, corrected for the rows beside this one.
    """

    measure: Measure
    task: str | None
    group: str | None
    length: int | None
    metric: str
    higher_is_better: bool
    prompts: int
    baseline: float
    value: float
    difference: float
    interval: Interval
    probability: float

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `no real difference`."""
        if self.probability >= _REAL:
            return "no real difference"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """One evaluation against the baseline.

    Attributes:
        rows: in each measure and length first the mean over all tasks, then those of groups, then tasks.
        unequal: prompts that stand at the same place in both and differ; they are not compared.
        unmatched: prompts that only one of the two has.
    """

    baseline: str
    label: str
    rows: tuple[Difference, ...]
    unequal: int
    unmatched: int


def compare(baseline: Evaluated, others: Iterable[Evaluated]) -> list[Comparison]:
    """Compares each of `others` with `baseline` over the prompts that both were given.

    The probabilities are corrected (Holm, 1979) for all rows of all comparisons together.
    """
    found = [_compared(baseline, other) for other in others]
    corrected = iter(holm([row.probability for comparison in found for row in comparison.rows]))
    return [
        replace(comparison, rows=tuple(replace(row, probability=next(corrected)) for row in comparison.rows))
        for comparison in found
    ]


def _compared(baseline: Evaluated, other: Evaluated) -> Comparison:
    ones, others = (_prompts(each.samples) for each in (baseline, other))
    shared = ones.keys() & others.keys()
    equal = {prompt for prompt in shared if ones[prompt] == others[prompt]}
    before, after = _in_both(_values(baseline.samples, equal), _values(other.samples, equal))
    groups: dict[tuple[str, str], str | None] = {
        (score.measure, score.task): score.group for score in baseline.scores.tasks
    }
    higher: dict[tuple[str, str, str], bool] = {
        (score.measure, score.task, score.metric): score.higher_is_better for score in baseline.scores.tasks
    }
    rows = [_difference(part, before, after, higher) for part in _parts(list(before), groups)]
    return Comparison(
        baseline=baseline.label,
        label=other.label,
        rows=tuple(rows),
        unequal=len(shared) - len(equal),
        unmatched=len(ones.keys() ^ others.keys()),
    )


def _prompts(samples: Iterable[Sample]) -> dict[_Prompt, str]:
    return {(each.measure, each.task, each.length, each.index): each.prompt for each in samples}


def _values(samples: Iterable[Sample], prompts: set[_Prompt]) -> _Values:
    """Returns the values of those prompts."""
    values: _Values = {}
    for each in samples:
        if (each.measure, each.task, each.length, each.index) in prompts:
            row = (each.measure, each.task, each.length, each.metric)
            values.setdefault(row, {})[each.index] = each.value
    return values


def _in_both(ones: _Values, others: _Values) -> tuple[_Values, _Values]:
    """Returns what both have values of."""
    indices = {row: ones[row].keys() & others[row].keys() for row in ones if row in others}
    first, second = (
        {row: {index: each[row][index] for index in sorted(found)} for row, found in indices.items() if found}
        for each in (ones, others)
    )
    return first, second


@dataclass(frozen=True)
class _Part:
    """The tasks that make one row of the table; `task` and `group` as in `Difference`."""

    rows: Sequence[_Row]
    task: str | None = None
    group: str | None = None


def _parts(rows: Sequence[_Row], groups: Mapping[tuple[str, str], str | None]) -> list[_Part]:
    """Returns the rows of the table, in its order."""
    parts: list[_Part] = []
    for measure, length in dict.fromkeys((measure, length) for measure, _, length, _ in rows):
        here = [row for row in rows if (row[0], row[2]) == (measure, length)]
        if measure in _MEANT_OVER_TASKS and len(here) > 1:
            parts.append(_Part(here))
        by_group: dict[tuple[str, str], list[_Row]] = {}
        for row in here:
            if group := groups.get(row[:2]):
                by_group.setdefault((group, row[3]), []).append(row)
        parts += [_Part(found, group=group) for (group, _), found in by_group.items() if len(found) > 1]
        parts += [_Part([row], task=row[1], group=groups.get(row[:2])) for row in here]
    return parts


def _difference(
    part: _Part, before: _Values, after: _Values, higher_is_better: Mapping[tuple[str, str, str], bool]
) -> Difference:
    found = Bootstrap.of(*(paired(after[row], before[row]) for row in part.rows))
    measure, task, length, metric = part.rows[0]
    return Difference(
        measure=measure,
        task=part.task,
        group=part.group,
        length=length,
        metric=metric,
        higher_is_better=higher_is_better.get((measure, task, metric), measure != "perplexity"),
        prompts=sum(len(before[row]) for row in part.rows),
        baseline=_mean([before[row] for row in part.rows]),
        value=_mean([after[row] for row in part.rows]),
        difference=found.mean,
        interval=found.interval,
        probability=found.probability,
    )


def _mean(tasks: Sequence[Mapping[int, float]]) -> float:
    return math.fsum(math.fsum(values.values()) / len(values) for values in tasks) / len(tasks)
