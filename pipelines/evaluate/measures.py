"""What is measured: each measure has units scored by a fleet, and sums their outcomes up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipelines.evaluate.fleet import Fleet
from pipelines.evaluate.perplexity import PerplexityUnit, bin_bounds
from pipelines.evaluate.recall import RecallUnit, read_hits
from pipelines.evaluate.scores import Measure as Name
from pipelines.evaluate.scores import (
    PerplexityScore,
    PositionBin,
    PositionLoss,
    RetrievalScore,
    Sample,
    TaskScore,
    Throughput,
)
from pipelines.evaluate.units import Outcome, Unit
from se_model.span.hits import Hits


@dataclass
class Found:
    """What was found, in the records of `scores.json` and `samples.jsonl`."""

    tasks: list[TaskScore] = field(default_factory=list)
    perplexity: list[PerplexityScore] = field(default_factory=list)
    positions: list[PositionLoss] = field(default_factory=list)
    retrieval: list[RetrievalScore] = field(default_factory=list)
    throughput: list[Throughput] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


class Measure(Protocol):
    """One of the things that an evaluation measures."""

    def measure(self, fleet: Fleet, found: Found) -> None:
        """Has everything scored, and adds what that comes to."""
        ...

    def room(self, dtype: torch.dtype) -> int:
        """Bytes that a worker needs for it beside a model in `dtype` and a few rows."""
        ...


@dataclass(frozen=True)
class Recall:
    """Needle recall: see `pipelines.evaluate.recall`."""

    units: Sequence[RecallUnit]

    def measure(self, fleet: Fleet, found: Found) -> None:
        """As `Measure.measure`."""
        answers: dict[tuple[str, int], list[list[bool]]] = defaultdict(list)
        depths: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        hits: dict[int, list[Hits]] = defaultdict(list)
        unseen: dict[int, list[tuple[float, int]]] = defaultdict(list)
        outcomes = fleet.score(self.units, "recall")
        found.throughput.append(throughput("recall", self.units, outcomes))
        for unit, outcome in zip(self.units, outcomes, strict=True):
            given = answers[unit.task, unit.length]
            found.samples += [
                Sample(
                    measure="recall",
                    task=unit.task,
                    length=unit.length,
                    index=len(given) + number,
                    prompt=prompt,
                    metric="recall",
                    value=sum(each) / len(each),
                    answers=each,
                    depth=at[0] if len(at) == 1 else None,
                )
                for number, (each, at, prompt) in enumerate(
                    zip(outcome["answers"], outcome["depths"], outcome["prompts"], strict=True)
                )
            ]
            given += outcome["answers"]
            depths[unit.task, unit.length] += [
                (depth, float(right))
                for each, at in zip(outcome["answers"], outcome["depths"], strict=True)
                for right, depth in zip(each, at, strict=True)
            ]
            hits[unit.length].append(read_hits(outcome["hits"]))
            if (share := outcome["never_chosen"]) is not None:
                unseen[unit.length].append((share, unit.count))
        found.tasks += [
            TaskScore.of_recall(*where, prompts, depths[where]) for where, prompts in answers.items()
        ]
        for length, each in hits.items():
            together = Hits.together(each)
            if means := together.means():
                share = sum(share * count for share, count in unseen[length]) / sum(
                    count for _, count in unseen[length]
                )
                more = {"length": length, "asked_by_depth": together.by_depth(), "never_chosen": share}
                found.retrieval.append(RetrievalScore.model_validate(means | more))

    def room(self, dtype: torch.dtype) -> int:
        """As `Measure.room`."""
        return 0


@dataclass(frozen=True)
class Perplexity:
    """Perplexity by length and by position: see `pipelines.evaluate.perplexity`."""

    units: Sequence[PerplexityUnit]

    def measure(self, fleet: Fleet, found: Found) -> None:
        """As `Measure.measure`."""
        nats: dict[int, list[float]] = defaultdict(list)
        bins: list[list[float]] = []
        outcomes = fleet.score(self.units, "perplexity")
        found.throughput.append(throughput("perplexity", self.units, outcomes))
        for unit, outcome in zip(self.units, outcomes, strict=True):
            documents = nats[unit.length]
            found.samples += [
                Sample(
                    measure="perplexity",
                    task="perplexity",
                    length=unit.length,
                    index=len(documents) + number,
                    prompt=prompt,
                    metric="loss",
                    value=each / unit.scored,
                    nats=each,
                )
                for number, (each, prompt) in enumerate(zip(outcome["nats"], outcome["prompts"], strict=True))
            ]
            documents += outcome["nats"]
            bins += outcome.get("bins", [])
        (tokens,) = {unit.scored for unit in self.units}
        found.perplexity += [PerplexityScore.of(length, tokens, each) for length, each in nats.items()]
        if bins:
            found.positions.append(_by_position(max(nats), bins))

    def room(self, dtype: torch.dtype) -> int:
        """As `Measure.room`."""
        return 0


def throughput(measure: Name, units: Sequence[Unit], outcomes: Sequence[Outcome]) -> Throughput:
    """How fast units were scored, by the time that each took."""
    return Throughput.of(
        measure,
        prompts=sum(unit.count for unit in units),
        tokens=sum(unit.tokens for unit in units),
        seconds=sum(outcome["seconds"] for outcome in outcomes),
    )


def _by_position(length: int, bins: Sequence[Sequence[float]]) -> PositionLoss:
    """Sums up the nats of each window's bins."""
    bounds = bin_bounds(length, len(bins[0]))
    return PositionLoss(
        length=length,
        bins=tuple(
            PositionBin.of(first, end - 1, nats)
            for (first, end), nats in zip(bounds, zip(*bins, strict=True), strict=True)
        ),
    )
