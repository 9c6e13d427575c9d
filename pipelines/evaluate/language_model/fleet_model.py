"""A model for lm-eval whose answers come from a fleet: lm-eval makes requests and sums up, workers answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from pipelines.evaluate.fleet import Fleet
from pipelines.evaluate.language_model.batches import at_most, batches
from pipelines.evaluate.language_model.cache import CacheSize, cache_size
from pipelines.evaluate.language_model.encode import Encoder, Prompt, ScoredTokens
from pipelines.evaluate.language_model.model import RequestLM
from pipelines.evaluate.language_model.score import Likelihood
from pipelines.evaluate.language_model.together import decoded_together, shares
from pipelines.evaluate.language_model.units import GenerationUnit, LikelihoodUnit
from pipelines.evaluate.units import Outcome, Unit

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class FleetLM(RequestLM):
    """Answers requests by a fleet.

    Args:
        fleet: has the model.
        encoder: makes tokens of requests.
        tokenizer: the reference of the encoder's tokenizer, for the workers.
        what: is asked, for progress.
        tokens_per_batch: tokens that go through the model together, unless a single row has more.
        config: the model's.

    Attributes:
        asked: the units scored so far, and what became of them.
    """

    def __init__(
        self,
        fleet: Fleet,
        encoder: Encoder,
        tokenizer: str,
        *,
        what: str,
        tokens_per_batch: int,
        config: PreTrainedConfig,
    ) -> None:
        super().__init__(encoder)
        self._fleet, self._reference, self._what = fleet, tokenizer, what
        self._tokens_per_batch, self._config = tokens_per_batch, config
        self.asked: list[tuple[Unit, Outcome]] = []

    def score(self, requests: Sequence[ScoredTokens]) -> list[Likelihood]:
        """As `RequestLM.score`."""
        cut = batches([each.tokens for each in requests], at_most(self._tokens_per_batch))
        units = [LikelihoodUnit(tuple(requests[row] for row in rows)) for rows in cut]
        found = [outcome["likelihoods"] for outcome in self._ask(units)]
        answers = dict(zip(chain(*cut), chain(*found), strict=True))
        return [(float(nats), bool(first)) for nats, first in map(answers.__getitem__, range(len(requests)))]

    def complete(self, prompts: Sequence[Prompt], stop: tuple[str, ...]) -> list[str]:
        """As `RequestLM.complete`."""
        cut = shares(prompts, decoded_together(self._cache_size))
        units = [
            GenerationUnit(tuple(prompts[row] for row in rows), stop, self._reference, self._tokens_per_batch)
            for rows in cut
        ]
        found = [outcome["texts"] for outcome in self._ask(units)]
        answers = dict(zip(chain(*cut), chain(*found), strict=True))
        return [str(answers[row]) for row in range(len(prompts))]

    @cached_property
    def _cache_size(self) -> CacheSize:
        return cache_size(self._config, self._fleet.dtype)

    def _ask(self, units: Sequence[Unit]) -> list[Outcome]:
        outcomes = self._fleet.score(units, self._what)
        self.asked += zip(units, outcomes, strict=True)
        return outcomes
