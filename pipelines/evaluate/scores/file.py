"""The format of `scores.json`: what an evaluation found, on which machine, with which versions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pipelines.errors import EspanError
from pipelines.evaluate.scores.earlier import EARLIER_FORMAT, converted
from pipelines.evaluate.scores.records import (
    PerplexityScore,
    PositionLoss,
    Record,
    RetrievalScore,
    TaskMeasure,
    TaskScore,
    Throughput,
)
from pipelines.statistics import Interval
from pipelines.system import storage

SCORES_FILE = "scores.json"
FORMAT: Literal["espan-scores/2"] = "espan-scores/2"


class Mean(Record):
    """The mean of several tasks' values, each with the same weight, and its interval."""

    value: float
    interval: Interval


class Scores(Record):
    """Everything in `scores.json`; what was not measured is empty.

    Attributes:
        model: the model as the recipe names it.
        attention: what every attention layer computed while it was scored, as a recipe writes it.
        precision: of the weights and the arithmetic.
        seed: of the prompts.
        tasks: every metric of every task, in the recipe's order.
        retrieval: by length; left out of the file where no attention chooses blocks.
        seconds: wall-clock time of the scoring, models' loading included.
        machine: what it ran on.
        versions: of the packages that decide the numbers.
    """

    format: Literal["espan-scores/2"] = FORMAT
    model: str
    attention: Mapping[str, Any]
    precision: str
    seed: int
    tasks: tuple[TaskScore, ...] = ()
    perplexity: tuple[PerplexityScore, ...] = ()
    positions: tuple[PositionLoss, ...] = ()
    retrieval: Annotated[tuple[RetrievalScore, ...], Field(exclude_if=lambda scores: not scores)] = ()
    throughput: tuple[Throughput, ...] = ()
    seconds: float
    machine: Mapping[str, Any] = Field(default_factory=dict)
    versions: Mapping[str, str] = Field(default_factory=dict)

    def of(self, measure: TaskMeasure) -> tuple[TaskScore, ...]:
        """The scores of one measure, in the recipe's order."""
        return tuple(score for score in self.tasks if score.measure == measure)

    def lengths(self, measure: TaskMeasure) -> tuple[int, ...]:
        """Every length at which `measure` was taken, ascending."""
        return tuple(sorted({score.length for score in self.of(measure) if score.length is not None}))

    def score_at(self, measure: TaskMeasure, task: str, length: int | None) -> TaskScore | None:
        """The first metric of `task` at `length`; None where it was not measured."""
        found = (score for score in self.of(measure) if (score.task, score.length) == (task, length))
        return next(found, None)

    def mean_at(self, measure: TaskMeasure, length: int) -> Mean | None:
        """The mean over all tasks at `length`; None where `measure` was not taken.

        The interval of the mean follows from those of the tasks (Zou and Donner, 2008).
        """
        tasks = dict.fromkeys(score.task for score in self.of(measure))
        found = [score for task in tasks if (score := self.score_at(measure, task, length))]
        if not found:
            return None
        value = math.fsum(score.value for score in found) / len(found)
        below = math.hypot(*(score.value - score.interval.low for score in found)) / len(found)
        above = math.hypot(*(score.interval.high - score.value for score in found)) / len(found)
        return Mean(value=value, interval=Interval(value - below, value + above))

    def perplexity_at(self, length: int) -> PerplexityScore | None:
        """Perplexity at `length`; None where it was not measured."""
        return next((score for score in self.perplexity if score.length == length), None)

    @classmethod
    def read(cls, folder: str) -> Scores:
        """Reads `scores.json` of an evaluation's folder, in today's format or the one before.

        Raises:
            EspanError: there is none, or it holds neither format.
        """
        path = storage.join(folder, SCORES_FILE)
        try:
            content = storage.read_json(path)
            if isinstance(content, dict) and content.get("format") == EARLIER_FORMAT:
                content = converted(content, FORMAT)
            return cls.model_validate(content)
        except FileNotFoundError as error:
            raise EspanError(f"{path}: not found; run the evaluate stage first") from error
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            first = str(error).splitlines()[0]
            raise EspanError(
                f"{path}: is not in format {FORMAT} ({first}); run the evaluate stage again"
            ) from error

    def write(self, folder: str) -> str:
        """Writes `scores.json` into `folder`, whole or not at all, and returns its path."""
        path = storage.join(folder, SCORES_FILE)
        storage.write_json_atomic(path, self.model_dump(mode="json"))
        return path
