"""How likely tokens are after others, and whether greedy decoding would write them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.evaluate.language_model.batches import at_most, batches
from pipelines.evaluate.language_model.encode import ScoredTokens
from pipelines.evaluate.language_model.token_ids import TokenIds
from pipelines.evaluate.worker import Worker

Likelihood = tuple[float, bool]
"""A continuation's log-likelihood in nats, and whether each of its tokens is the model's first choice."""


def score(
    worker: Worker, requests: Sequence[ScoredTokens], *, tokens_per_batch: int = 4096
) -> list[Likelihood]:
    """Returns the likelihood of each continuation after its context; logits are normalised in float32.

    Requests with the same inputs, as answers of one token to one question have, go through the model once.

    Args:
        worker: has the model; of workers that share rows each calls this, to the same end.
        requests: see `Encoder`.
        tokens_per_batch: tokens that go through the model together, padding included.
    """
    rows: dict[TokenIds, list[int]] = {}
    for number, request in enumerate(requests):
        rows.setdefault(request.inputs, []).append(number)
    inputs = list(rows)
    found: dict[int, Likelihood] = {}
    for batch in batches([len(row) for row in inputs], at_most(tokens_per_batch)):
        numbers = [number for row in batch for number in rows[inputs[row]]]
        places = [place for place, row in enumerate(batch) for _ in rows[inputs[row]]]
        answers = _likelihoods(worker, [inputs[row] for row in batch], places, [requests[n] for n in numbers])
        found.update(zip(numbers, answers, strict=True))
    return [found[number] for number in range(len(requests))]


def _likelihoods(
    worker: Worker, inputs: Sequence[Sequence[int]], places: Sequence[int], requests: Sequence[ScoredTokens]
) -> list[Likelihood]:
    """The likelihood of each request, whose inputs are row `places` of `inputs`."""
    longest = max(map(len, inputs))
    lengths = torch.tensor([len(row) for row in inputs])
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in inputs])
    counts = [len(request.continuation) for request in requests]
    rows = torch.tensor(places).repeat_interleave(torch.tensor(counts))
    positions = torch.cat(
        [
            torch.arange(len(inputs[place]) - count, len(inputs[place]))
            for place, count in zip(places, counts, strict=True)
        ]
    )
    targets = torch.tensor([token for request in requests for token in request.continuation])
    predicted = worker.predict(padded, rows, positions, targets, lengths)
    # In float64, so that a long text's sum loses nothing.
    nats = predicted.log_likelihoods.double().cpu().split(counts)
    first = predicted.first_choice.cpu().split(counts)
    return [(float(some.sum()), bool(right.all())) for some, right in zip(nats, first, strict=True)]
