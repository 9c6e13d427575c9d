"""Cuts an evaluation into units and assigns them to workers: arithmetic only.

A unit is a batch of rows of one length. Which rows make a unit depends on the recipe alone, never on the
number of workers, so that every row goes through the same arithmetic and the scores are the same to the last
bit.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.recipe.keys.needles import RecallTask

if TYPE_CHECKING:
    from se_model.span.hits import Hits


@dataclass(frozen=True)
class RecallUnit:
    """Prompts `first` to `first + count` of one task at one length."""

    task: RecallTask
    length: int
    first: int
    count: int

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return self.count * self.length


@dataclass(frozen=True)
class PerplexityUnit:
    """Windows `first` to `first + count` of the held-out documents, cut to their last `length` tokens."""

    length: int
    first: int
    count: int

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return self.count * self.length


Unit = RecallUnit | PerplexityUnit


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit's rows, in order.

    Attributes:
        answers: of a recall unit: for each prompt, whether each of its answers was given.
        hits: of a recall unit: how often the needles that are asked for were among the blocks chosen.
        nats: of a perplexity unit: the negative log-likelihood of each window's scored tokens.
        prompts: `prompt_hash` of each prompt or window.
    """

    answers: list[list[bool]] = field(default_factory=list)
    hits: Hits | None = None
    nats: list[float] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)


def recall_units(
    tasks: Sequence[RecallTask], lengths: Sequence[int], samples: int, *, tokens_per_batch: int
) -> list[RecallUnit]:
    """Cuts `samples` prompts of every task and length into batches of at most `tokens_per_batch` tokens."""
    return [
        RecallUnit(task, length, first, count)
        for task in tasks
        for length in lengths
        for first, count in _batches(samples, length, tokens_per_batch)
    ]


def perplexity_units(lengths: Sequence[int], windows: int, *, tokens_per_batch: int) -> list[PerplexityUnit]:
    """Cuts `windows` windows of every length into batches of at most `tokens_per_batch` tokens."""
    return [
        PerplexityUnit(length, first, count)
        for length in lengths
        for first, count in _batches(windows, length, tokens_per_batch)
    ]


def deal(units: Sequence[Unit], workers: int) -> list[list[Unit]]:
    """Gives every unit to one of `workers` workers so that all have about the same number of tokens.

    The longest unit goes first, each to the worker with the least so far. Returns at most `workers` lists,
    none of them empty.
    """
    loads = [(0, worker) for worker in range(workers)]
    shares: list[list[Unit]] = [[] for _ in range(workers)]
    for unit in sorted(units, key=lambda unit: -unit.tokens):
        tokens, worker = heapq.heappop(loads)
        shares[worker].append(unit)
        heapq.heappush(loads, (tokens + unit.tokens, worker))
    return [share for share in shares if share]


def _batches(rows: int, length: int, tokens_per_batch: int) -> list[tuple[int, int]]:
    size = max(1, tokens_per_batch // length)
    return [(first, min(size, rows - first)) for first in range(0, rows, size)]
