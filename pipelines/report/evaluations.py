"""The run's evaluations, which of them the others are compared with, and what the run came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import EspanError
from pipelines.evaluate.scores import Comparison, Difference, Evaluated, Scores, TaskMeasure, compare
from pipelines.report.records import RunRecord
from pipelines.report.text import words


@dataclass(frozen=True)
class Evaluation:
    """One evaluate stage.

    Attributes:
        stage: its name.
        scores: what it wrote.
        colour: index of its `--series-N` variable.
        path: its folder.
    """

    stage: str
    scores: Scores
    colour: int
    path: str

    @property
    def label(self) -> str:
        """What a legend calls it."""
        model, attention = self.scores.model, self.scores.attention["kind"]
        named = self.stage if model == self.stage else f"{self.stage} ({model})"
        return named if attention == "full" else f"{named}, {words(str(attention))} attention"


def evaluations(run: RunRecord) -> list[Evaluation]:
    """Reads the scores of every finished evaluate stage; a baseline comes first and is muted.

    The baseline is the first stage whose model this run did not train, or trained further.
    """
    stages = run.finished("evaluate")
    trainings = {stage.name: stage for stage in run.stages if stage.kind == "train"}
    starts = [training.keys["model"] for training in trainings.values()]
    compared_with = (s for s in stages if s.keys["model"] not in trainings or s.keys["model"] in starts)
    baseline = next(compared_with, None)
    ordered = sorted(stages, key=lambda stage: stage is not baseline)
    first_colour = 0 if baseline else 1
    return [
        Evaluation(stage.name, Scores.read(stage.path), first_colour + position, stage.path)
        for position, stage in enumerate(ordered)
    ]


@dataclass(frozen=True)
class Pairs:
    """The evaluations that could be paired with the first, prompt by prompt.

    Attributes:
        comparisons: one for each, labelled by its stage.
        problem: why an evaluation could not be compared; empty if all could.
    """

    comparisons: Sequence[Comparison]
    problem: str = ""

    @classmethod
    def of(cls, found: Sequence[Evaluation]) -> Pairs:
        """Compares all but the first of `found` with the first."""
        if len(found) < 2:
            return cls(())
        evaluated, problem = [], ""
        for each in found:
            try:
                evaluated.append(Evaluated.read(each.path, each.stage))
            except EspanError as error:  # of an earlier version, say: the page shows the rest
                problem = str(error)
                if each is found[0]:
                    return cls((), problem)
        baseline, *others = evaluated
        comparisons = [comparison for comparison in compare(baseline, others) if comparison.rows]
        return cls(comparisons, problem)

    def mean_difference(self, stage: str, measure: TaskMeasure, length: int) -> Difference | None:
        """How `stage` differs from the first in the mean over tasks; None where that is not known."""
        found = (row for each in self.comparisons if each.label == stage for row in mean_rows(measure, each))
        return next((row for row in found if row.length == length), None)


def mean_rows(measure: TaskMeasure, comparison: Comparison) -> list[Difference]:
    """The rows over all tasks by ascending length; of a length with one task, that task's."""
    rows = [row for row in comparison.rows if row.measure == measure and row.length is not None]
    over_all = [row for row in rows if row.task is None and row.group is None]
    known = {row.length for row in over_all}
    alone = [row for row in rows if row.length not in known and row.task is not None]
    return sorted([*over_all, *alone], key=lambda row: row.length or 0)


@dataclass(frozen=True)
class Outcome:
    """What the run came to.

    Attributes:
        before: the first evaluation; None if there is only one.
        after: the other or, of more than two, the best of the others.
        best_of_many: there are more than two.
    """

    before: Evaluation | None
    after: Evaluation
    best_of_many: bool

    @classmethod
    def of(cls, found: Sequence[Evaluation]) -> Outcome | None:
        """Chooses what the summary speaks of; None where nothing was evaluated."""
        if not found:
            return None
        if len(found) == 1:
            return cls(None, found[0], False)
        if len(found) == 2:
            return cls(found[0], found[1], False)
        return cls(found[0], max(found[1:], key=_rank), True)


def headline_measure(scores: Scores) -> TaskMeasure | None:
    """Returns the measure that the summary speaks of: RULER, or else the probes; None if there is neither."""
    return next((measure for measure in ("ruler", "recall") if scores.lengths(measure)), None)


def _rank(each: Evaluation) -> tuple[float, float]:
    """Orders evaluations by what the summary speaks of, then by perplexity, each at the greatest length."""
    scores = each.scores
    measure = headline_measure(scores)
    mean = scores.mean_at(measure, scores.lengths(measure)[-1]) if measure else None
    perplexity = max(scores.perplexity, key=lambda score: score.length).loss if scores.perplexity else 0.0
    return (mean.value if mean else 0.0, -perplexity)
