"""What is measured: each measure has units scored by a fleet, and sums their outcomes up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.evaluate.fleet import Fleet
from pipelines.evaluate.perplexity import PerplexityUnit
from pipelines.evaluate.recall import RecallUnit, read_hits
from pipelines.evaluate.scores import PerplexityScore, RecallScore, RetrievalScore
from se_model.span.hits import Hits


@dataclass(frozen=True)
class Found:
    """What a measure found.

    Attributes:
        scores: attributes of `Scores`.
        samples: one record per prompt or document, as `samples.jsonl` holds them.
    """

    scores: Mapping[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)


class Measure(Protocol):
    """One of the things that an evaluation measures."""

    def measure(self, fleet: Fleet) -> Found:
        """Has everything scored, and returns what that comes to."""
        ...


@dataclass(frozen=True)
class Recall:
    """Needle recall: see `pipelines.evaluate.recall`."""

    units: Sequence[RecallUnit]

    def measure(self, fleet: Fleet) -> Found:
        """As `Measure.measure`."""
        answers: dict[tuple[str, int], list[list[bool]]] = defaultdict(list)
        hits: dict[int, list[Hits]] = defaultdict(list)
        for unit, outcome in zip(self.units, fleet.score(self.units, "recall"), strict=True):
            answers[unit.task, unit.length] += outcome["answers"]
            hits[unit.length].append(read_hits(outcome["hits"]))
        scores = {
            "recall": tuple(RecallScore.of(*where, prompts) for where, prompts in answers.items()),
            "retrieval": tuple(
                RetrievalScore.model_validate({"length": length, **means})
                for length, found in hits.items()
                if (means := Hits.together(found).means())
            ),
        }
        samples = [
            {"task": task, "length": length, "index": index, "answers": given}
            for (task, length), prompts in answers.items()
            for index, given in enumerate(prompts)
        ]
        return Found(scores, samples)


@dataclass(frozen=True)
class Perplexity:
    """Perplexity by length and by position: see `pipelines.evaluate.perplexity`."""

    units: Sequence[PerplexityUnit]

    def measure(self, fleet: Fleet) -> Found:
        """As `Measure.measure`."""
        nats: dict[int, list[float]] = defaultdict(list)
        scored = self.units[0].scored
        for unit, outcome in zip(self.units, fleet.score(self.units, "perplexity"), strict=True):
            nats[unit.length] += outcome["nats"]
        samples = [
            {"task": "perplexity", "length": length, "index": index, "nats": each}
            for length, documents in nats.items()
            for index, each in enumerate(documents)
        ]
        scores = tuple(PerplexityScore.of(length, scored, documents) for length, documents in nats.items())
        return Found({"perplexity": scores}, samples)
