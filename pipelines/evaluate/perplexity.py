"""Perplexity by length: the loss of the same tokens, with more and more text before them in view.

A document gives one window: its last `max(lengths)` tokens. At length n the model reads the window's last n
tokens, and the loss of the last `scored` of them counts. So the numbers at different lengths differ by what
the model makes of the context and by nothing else. A model that was trained with a token at the beginning of
texts reads it first, in place of the first of the n tokens.

At the greatest length the loss of all tokens is summed by position, too: windows in equal bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipelines.errors import EspanError
from pipelines.evaluate.scores import prompt_hash
from pipelines.evaluate.units import Outcome, batches
from pipelines.evaluate.windows import WindowSource
from pipelines.evaluate.worker import Worker


@dataclass(frozen=True)
class PerplexityUnit:
    """Windows `first` to `first + count` of the held-out documents, cut to their last `length` tokens.

    Attributes:
        scored: tokens at the end of a window that count.
        bins: how many bins of positions the loss of all tokens is summed in; 0 for none.
    """

    windows: WindowSource
    length: int
    first: int
    count: int
    scored: int
    bins: int = 0

    @property
    def key(self) -> str:
        """As `Unit.key`."""
        return f"perplexity-{self.length}-{self.first}"

    @property
    def tokens(self) -> int:
        """As `Unit.tokens`."""
        return self.count * self.length

    def score(self, worker: Worker) -> Outcome:
        """Returns `nats` of each window's scored tokens, `bins`, those of its bins, and `prompts`, its hash.

        Raises:
            EspanError: a loss is infinite or not a number.
        """
        windows = self.windows.read(self.first, self.count, self.length)
        first = 1 if self.bins else self.length - self.scored
        nats = token_nats(worker, windows, first=first)
        if not math.isfinite(float(nats.sum())):
            raise EspanError(
                f"perplexity at {self.length} tokens: the loss is not a number; check weights and precision"
            )
        found: Outcome = {
            "nats": nats[:, -self.scored :].sum(1).tolist(),
            "prompts": [prompt_hash(window) for window in windows.tolist()],
        }
        if self.bins:
            bins = bin_bounds(self.length, self.bins)
            found["bins"] = [[float(row[a - 1 : b - 1].sum()) for a, b in bins] for row in nats]
        return found


def perplexity_units(
    windows: WindowSource, lengths: tuple[int, ...], *, scored: int, bins: int, tokens_per_batch: int
) -> list[PerplexityUnit]:
    """Cuts all windows at every length into batches of at most `tokens_per_batch` tokens."""
    return [
        PerplexityUnit(windows, length, first, count, scored, bins if length == max(lengths) else 0)
        for length in lengths
        for first, count in batches(len(windows.ends), length, tokens_per_batch)
    ]


def token_nats(worker: Worker, windows: Tensor, *, first: int) -> Tensor:
    """Negative log-likelihoods in nats of each window's tokens from position `first` (at least 1) on.

    windows: [N, n] token ids -> float64 [N, n - first], on the CPU.
    """
    count, length = windows.shape
    rows = torch.arange(count).repeat_interleave(length - first)
    positions = torch.arange(first, length).repeat(count)
    found = worker.predict(windows, rows, positions - 1, windows[rows, positions]).log_likelihoods
    return -found.double().cpu().view(count, length - first)


def bin_bounds(length: int, bins: int) -> list[tuple[int, int]]:
    """Cuts the positions that are predicted, from 1 on, into equal bins: the first and the end of each."""
    bins = min(bins, length - 1)
    bounds = [1 + (length - 1) * each // bins for each in range(bins + 1)]
    return list(pairwise(bounds))
