"""Measures loaded tasks of lm-eval by a fleet, and puts what lm-eval finds into this package's records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from pipelines.errors import EspanError
from pipelines.evaluate.fleet import Fleet
from pipelines.evaluate.harness.aggregated import aggregated_interval
from pipelines.evaluate.harness.quiet import quiet_lm_eval
from pipelines.evaluate.harness.tasks import Loaded
from pipelines.evaluate.language_model.cache import cache_size
from pipelines.evaluate.language_model.encode import Encoder
from pipelines.evaluate.language_model.fleet_model import FleetLM
from pipelines.evaluate.language_model.together import room_for
from pipelines.evaluate.measures import Found, throughput
from pipelines.evaluate.scores import Sample, TaskMeasure, TaskScore, prompt_hash

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Label:
    """What a task of lm-eval is called in the scores.

    Attributes:
        metrics: lm-eval's names of those that count, and what they are called; None for all, as they are.
    """

    task: str
    group: str | None = None
    length: int | None = None
    metrics: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Harness:
    """Tasks of lm-eval.

    Attributes:
        name: of the measure.
        loaded: the tasks, with their data.
        encoder: makes tokens of requests.
        tokenizer: the reference of the encoder's tokenizer.
        tokens_per_batch: tokens that go through the model together.
        config: the model's.
        lengths: tokens of each prompt that is continued, those to be generated included.
        limit: the most documents of each task.
        labels: by lm-eval's names; a task without one keeps its name.
        depth: where the answer of a document stands, from 0 to 1; None where that means nothing.
    """

    name: TaskMeasure
    loaded: Loaded
    encoder: Encoder
    tokenizer: str
    tokens_per_batch: int
    config: PreTrainedConfig
    lengths: Sequence[int] = ()
    limit: int | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    depth: Callable[[Mapping[str, Any]], float | None] = lambda document: None

    def measure(self, fleet: Fleet, found: Found) -> None:
        """As `Measure.measure`.

        Raises:
            EspanError: a prompt is longer than the model reads, or a task asks for what is not known here.
        """
        from lm_eval.evaluator import evaluate

        model = FleetLM(
            fleet,
            self.encoder,
            self.tokenizer,
            what=self.name,
            tokens_per_batch=self.tokens_per_batch,
            config=self.config,
        )
        try:
            with quiet_lm_eval():
                results: Any = evaluate(model, self.loaded, limit=self.limit, bootstrap_iters=0)
        except ValueError as error:  # how lm-eval refuses a task
            raise EspanError(f"{self.name}: {error}") from error
        for name, task in self.loaded["tasks"].items():
            self._add(name, task, results, found)
        if model.asked:
            found.throughput.append(throughput(self.name, *zip(*model.asked, strict=True)))

    def room(self, dtype: torch.dtype) -> int:
        """As `Measure.room`: the most that the model keeps of the rows that are generated together."""
        if not self.lengths:
            return 0
        return room_for(cache_size(self.config, dtype), self.lengths)

    def _add(self, name: str, task: Any, results: Any, found: Found) -> None:
        label = self.labels.get(name, Label(name, getattr(task.config, "group", None)))
        samples = results["samples"][name]
        filters = {each["filter"] for each in samples}
        better = results.get("higher_is_better", {}).get(name, {})
        for key, aggregated in results["results"][name].items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not _is_number(aggregated):
                continue
            if label.metrics is not None and metric not in label.metrics:
                continue
            called = (label.metrics or {}).get(metric, metric)
            if len(filters) > 1:  # of a text, by which the answer is found in it
                called = f"{called} ({filtered})"
            answers = [each for each in samples if each["filter"] == filtered and metric in each["metrics"]]
            values = [each[metric] for each in answers]
            score = self._score(label, called, answers, values, aggregated, better.get(metric, True))
            if score is None:
                score = TaskScore(
                    measure=self.name,
                    task=label.task,
                    group=label.group,
                    length=label.length,
                    metric=called,
                    samples=len(answers),
                    value=aggregated,
                    interval=aggregated_interval(task.aggregation()[metric], values, aggregated),
                    higher_is_better=better.get(metric, True),
                )
            else:
                found.samples += [
                    self._sample(label, called, index, each, value)
                    for index, (each, value) in enumerate(zip(answers, values, strict=True))
                ]
            found.tasks.append(score)

    def _score(
        self,
        label: Label,
        metric: str,
        answers: Sequence[Mapping[str, Any]],
        values: Sequence[Any],
        aggregated: float,
        higher_is_better: bool,
    ) -> TaskScore | None:
        """The metric, if it is the mean of the documents' own values; None otherwise."""
        if not values or not all(map(_is_number, values)):
            return None
        if not math.isclose(math.fsum(values) / len(values), aggregated, rel_tol=1e-6, abs_tol=1e-9):
            return None
        depths = [
            (depth, float(value))
            for each, value in zip(answers, values, strict=True)
            if (depth := self.depth(each["doc"])) is not None
        ]
        return TaskScore.of(
            self.name,
            label.task,
            label.length,
            metric,
            [float(value) for value in values],
            group=label.group,
            higher_is_better=higher_is_better,
            depths=depths,
        )

    def _sample(
        self, label: Label, metric: str, index: int, answer: Mapping[str, Any], value: float
    ) -> Sample:
        return Sample(
            measure=self.name,
            task=label.task,
            length=label.length,
            index=index,
            prompt=prompt_hash(answer["arguments"][0][0]),
            metric=metric,
            value=float(value),
            depth=self.depth(answer["doc"]),
            target=str(answer["target"]),
            prediction=[str(each) for each in answer["filtered_resps"]],
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
