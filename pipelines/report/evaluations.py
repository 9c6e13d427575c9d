"""The run's evaluations, which of them the others are compared with, and what the run came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.evaluate.scores import Scores
from pipelines.report.records import RunRecord
from pipelines.report.text import words


@dataclass(frozen=True)
class Evaluation:
    """One evaluate stage.

    Attributes:
        stage: its name.
        scores: what it wrote.
        colour: index of its `--series-N` variable.
    """

    stage: str
    scores: Scores
    colour: int

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
        Evaluation(stage.name, Scores.read(stage.path), first_colour + position)
        for position, stage in enumerate(ordered)
    ]


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


def _rank(each: Evaluation) -> tuple[float, float]:
    """Orders evaluations by recall and then by perplexity, each at the greatest length."""
    scores = each.scores
    lengths = scores.lengths("recall")
    recall = scores.mean_at("recall", lengths[-1]) if lengths else None
    perplexity = max(scores.perplexity, key=lambda score: score.length).loss if scores.perplexity else 0.0
    return (recall.value if recall else 0.0, -perplexity)
