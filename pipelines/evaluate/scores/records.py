"""The records of `scores.json`: one for each number that an evaluation found, with how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipelines.errors import EspanError
from pipelines.statistics import Bootstrap, Interval

TaskMeasure = Literal["recall", "ruler", "harness"]
Measure = Literal["recall", "ruler", "harness", "perplexity"]

# exp() of more is not a float, and JSON has no infinity.
_LARGEST_EXPONENT = 700.0
_DEPTH_BINS = 10


class Record(BaseModel):
    """A part of `scores.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class DepthScore(Record):
    """A score where what is asked for stands between `low` and `high`: 0 is a prompt's start, 1 its end.

    Attributes:
        samples: answers whose needle stands there.
        value: their mean.
    """

    low: float
    high: float
    samples: int
    value: float

    @classmethod
    def by_depth(cls, answers: Sequence[tuple[float, float]]) -> tuple[DepthScore, ...]:
        """Sums up (depth, value) of each answer in bins of a tenth; those without answers are left out."""
        bins: list[list[float]] = [[] for _ in range(_DEPTH_BINS)]
        for depth, value in answers:
            bins[min(_DEPTH_BINS - 1, int(depth * _DEPTH_BINS))].append(value)
        return tuple(
            cls(
                low=index / _DEPTH_BINS,
                high=(index + 1) / _DEPTH_BINS,
                samples=len(values),
                value=math.fsum(values) / len(values),
            )
            for index, values in enumerate(bins)
            if values
        )


class TaskScore(Record):
    """One metric of one task at one length.

    Attributes:
        measure: what the task belongs to: needle probes, RULER's tasks, or those of lm-eval.
        group: of tasks that are shown together; None for a task that stands alone.
        length: tokens in a prompt; None for a task whose prompts have any length.
        metric: what `value` is the mean of.
        samples: prompts scored.
        value: mean over prompts.
        interval: of `value`, by bootstrap over prompts.
        depths: `value` by where in the prompt the answer stands; empty for a task without such places.
        answers: of recall: expected answers over all prompts.
        exact: of recall: fraction of prompts with every answer right.
    """

    measure: TaskMeasure
    task: str
    group: str | None = None
    length: int | None = None
    metric: str
    samples: int
    value: float
    interval: Interval
    higher_is_better: bool = True
    depths: tuple[DepthScore, ...] = ()
    answers: int | None = None
    exact: float | None = None

    @classmethod
    def of(
        cls,
        measure: TaskMeasure,
        task: str,
        length: int | None,
        metric: str,
        values: Sequence[float],
        *,
        group: str | None = None,
        higher_is_better: bool = True,
        depths: Sequence[tuple[float, float]] = (),
    ) -> TaskScore:
        """Sums up `values`, one for each prompt; `depths`: (depth, value) of each answer.

        Raises:
            ValueError: there are no values, or one is not finite.
        """
        found = Bootstrap.of(values)
        return cls(
            measure=measure,
            task=task,
            group=group,
            length=length,
            metric=metric,
            samples=len(values),
            value=found.mean,
            interval=found.interval,
            higher_is_better=higher_is_better,
            depths=DepthScore.by_depth(depths),
        )

    @classmethod
    def of_recall(
        cls,
        task: str,
        length: int,
        outcomes: Sequence[Sequence[bool]],
        depths: Sequence[tuple[float, float]] = (),
    ) -> TaskScore:
        """Sums up needle probes: for each prompt, whether each of its answers was given.

        The value is the mean over prompts of the fraction of expected answers, as RULER scores.
        """
        fractions = [sum(prompt) / len(prompt) for prompt in outcomes]
        counted = {
            "answers": sum(map(len, outcomes)),
            "exact": sum(map(all, outcomes)) / len(outcomes),
        }
        return cls.of("recall", task, length, "recall", fractions, depths=depths).model_copy(update=counted)


class PerplexityScore(Record):
    """Perplexity of the same tokens when `length` tokens, themselves included, are in view.

    Attributes:
        length: tokens in a window.
        windows: windows scored, each from another document.
        scored_tokens: tokens whose loss counts, over all windows.
        loss: mean negative log-likelihood in nats per scored token.
        perplexity: `exp(loss)`.
        standard_error: of `loss`, from the spread between windows.
        interval: of `perplexity`, by bootstrap over windows.
    """

    length: int
    windows: int
    scored_tokens: int
    loss: float
    perplexity: float
    standard_error: float
    interval: Interval

    @classmethod
    def of(cls, length: int, scored: int, window_losses: Sequence[float]) -> PerplexityScore:
        """Sums up `window_losses`: nats summed over the `scored` last tokens of each window.

        Raises:
            EspanError: a loss is infinite or not a number.
        """
        means = [loss / scored for loss in window_losses]
        if not all(map(math.isfinite, means)):
            raise EspanError(
                f"perplexity at {length} tokens: the loss is not a number; check weights and precision"
            )
        found = Bootstrap.of(means)
        squares = math.fsum((window - found.mean) ** 2 for window in means)
        return cls(
            length=length,
            windows=len(means),
            scored_tokens=scored * len(means),
            loss=found.mean,
            perplexity=perplexity_of(found.mean),
            standard_error=math.sqrt(squares / max(1, len(means) - 1) / len(means)),
            interval=Interval(perplexity_of(found.interval.low), perplexity_of(found.interval.high)),
        )


def perplexity_of(loss: float) -> float:
    """Returns `exp(loss)`, or the greatest that JSON can hold."""
    return math.exp(min(loss, _LARGEST_EXPONENT))


class PositionBin(Record):
    """Mean loss in nats of the tokens `first` to `last`, both included and counted from 0, of every row.

    Attributes:
        tokens: scored, over all rows.
        interval: of `loss`, by bootstrap over rows.
    """

    first: int
    last: int
    tokens: int
    loss: float
    interval: Interval

    @classmethod
    def of(cls, first: int, last: int, row_losses: Sequence[float]) -> PositionBin:
        """Sums up `row_losses`: nats summed over these positions of each row."""
        size = last - first + 1
        found = Bootstrap.of([loss / size for loss in row_losses])
        tokens = size * len(row_losses)
        return cls(first=first, last=last, tokens=tokens, loss=found.mean, interval=found.interval)


class PositionLoss(Record):
    """Loss by position over whole held-out rows of `length` tokens; `bins` ascend."""

    length: int
    bins: tuple[PositionBin, ...]


ByHead = tuple[tuple[float | None, ...], ...]
"""For each layer one share for each key/value head; None where a layer had no cases."""


class RetrievalDepth(Record):
    """`RetrievalScore.asked` of needles between `low` and `high`; see `DepthScore`.

    Attributes:
        asked: over all layers and heads.
        asked_by_layer: mean over the heads of each layer; None where a layer had no cases.
    """

    low: float
    high: float
    asked: float
    asked_by_layer: tuple[float | None, ...]


class RetrievalScore(Record):
    """How often the memory blocks that are chosen hold the needles, at one length of all tasks' prompts.

    Attributes:
        length: tokens in a prompt.
        asked: share of the needles asked for, among those that could be chosen, whose block is chosen.
        not_asked: the same for needles that are not asked for; None where there are none.
        chance: what `asked` would be for blocks drawn at random.
        asked_by_head: `asked` by layer and key/value head; `not_asked_by_head` the same for the others.
        asked_by_depth: `asked` by where in the prompt the needle stands.
        never_chosen: share of the blocks that could be chosen which no choice holds; None if not measured.
    """

    length: int
    asked: float
    not_asked: float | None = None
    chance: float
    asked_by_head: ByHead
    not_asked_by_head: ByHead | None = None
    asked_by_depth: tuple[RetrievalDepth, ...] = ()
    never_chosen: float | None = None


class Throughput(Record):
    """How fast one measure was scored; `seconds` are those of all workers together.

    Attributes:
        tokens: that went through the model.
        tokens_per_second: of one worker.
    """

    measure: Measure
    prompts: int
    tokens: int
    seconds: float
    tokens_per_second: float

    @classmethod
    def of(cls, measure: Measure, *, prompts: int, tokens: int, seconds: float) -> Throughput:
        """Divides; `seconds` must be more than 0."""
        return cls(
            measure=measure,
            prompts=prompts,
            tokens=tokens,
            seconds=round(seconds, 3),
            tokens_per_second=round(tokens / seconds, 1),
        )
