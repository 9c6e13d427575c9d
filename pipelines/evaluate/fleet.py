"""Scores units on Ray: crews of workers load the model once, and each takes the next unit when it is free."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import TracebackType

import ray
import torch

from pipelines.errors import one_line
from pipelines.evaluate.crew import Crew
from pipelines.evaluate.outcomes import Outcomes
from pipelines.evaluate.units import Outcome, Unit
from pipelines.evaluate.worker import Scorer
from pipelines.system.progress import Progress, Task
from pipelines.system.reserved_tasks import failure_of

LOSSES = 3
"""How many crews of an evaluation may be lost, with a node for instance, and be replaced."""


class Fleet:
    """The crews of one evaluation; to be used as a context manager, which ends them.

    scorer: what each worker loads; crews: how many at most; outcomes: where what is found is kept at once.
    """

    def __init__(
        self, scorer: Scorer, *, crews: int, outcomes: Outcomes, label: str, progress: Progress
    ) -> None:
        self._scorer, self._most = scorer, crews
        self._outcomes, self._label, self._progress = outcomes, label, progress
        self._known = outcomes.read()
        self._crews: list[Crew] = []
        self._lost = 0
        if self._known:
            progress.message(f"{label}: going on; batches scored already: {len(self._known):,}")

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for crew in self._crews:
            crew.end()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._scorer.dtype

    def score(self, units: Sequence[Unit], what: str) -> list[Outcome]:
        """Returns the outcome of each unit, in order; those that are known from before are not scored again.

        what: for progress.

        Raises:
            NoBfloat16Error: bf16 was chosen without knowing the GPUs' type, and one does not have it.
            EspanError: a worker failed, with its message, or too many were lost.
        """
        keys = [unit.key for unit in units]
        asked = dict(zip(keys, units, strict=True))  # tasks that ask the same are answered at once
        # The longest first, so that crews end at about the same time.
        waiting = deque(
            sorted(
                (unit for key, unit in asked.items() if key not in self._known),
                key=lambda unit: unit.tokens,
                reverse=True,
            )
        )
        if waiting:
            total = sum(unit.tokens for unit in asked.values())
            with self._progress.task(f"{self._label}: {what}", total=total, unit="tokens") as shown:
                shown.advance(total - sum(unit.tokens for unit in waiting))
                self._score(waiting, shown)
        return [self._known[key] for key in keys]

    def _score(self, waiting: deque[Unit], shown: Task) -> None:
        while len(self._crews) < min(self._most, len(waiting)):
            self._crews.append(Crew.start(self._scorer))
        while True:
            for crew in self._crews:
                if waiting and crew.ready and crew.unit is None:
                    crew.take(waiting.popleft())
            if not waiting and not any(crew.unit for crew in self._crews):
                return  # crews that still wait for room in the cluster have nothing to do
            crew_of = {reference: crew for crew in self._crews for reference in crew.running}
            (reference, *_), _ = ray.wait(list(crew_of), num_returns=1)
            crew = crew_of[reference]
            try:
                outcome = crew.answered(reference)
            except ray.exceptions.RayError as error:
                waiting.extendleft(self._replace(crew, error))
                continue
            if outcome is not None and crew.unit is not None:
                self._outcomes.keep(crew.unit.key, outcome)
                self._known[crew.unit.key] = outcome
                shown.advance(crew.unit.tokens)
                crew.unit = None

    def _replace(self, crew: Crew, error: ray.exceptions.RayError) -> list[Unit]:
        """Puts a new crew in the place of one that was lost; returns what that one was to score.

        Raises:
            EspanError: it was not lost but failed, or too many were lost.
        """
        failure = failure_of(error, "a scoring worker failed")
        told = failure is getattr(error, "cause", None)
        if told or not crew.lost(error) or self._lost == LOSSES:
            raise failure from error
        self._lost += 1
        self._progress.message(f"{self._label}: lost a worker, starts another: {one_line(error)}")
        crew.end()
        self._crews[self._crews.index(crew)] = Crew.start(self._scorer)
        return [crew.unit] if crew.unit else []
