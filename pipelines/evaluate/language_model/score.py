"""How likely tokens are after others, and whether greedy decoding would write them.

Rows of unequal length are padded on the right. No token sees a later one, but span attention may choose
blocks by the queries of a whole chunk (`selection="chunk"`): so an attached model is told which tokens are
padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.evaluate.language_model.batches import batches
from pipelines.evaluate.language_model.encode import ScoredTokens
from se_model.attach import attached
from se_model.loss import head_of, unwrap

Likelihood = tuple[float, bool]
"""A continuation's log-likelihood in nats, and whether each of its tokens is the model's first choice."""


def score(
    model: nn.Module,
    requests: Sequence[ScoredTokens],
    *,
    tokens_per_batch: int = 4096,
    head_tokens: int = 1024,
) -> list[Likelihood]:
    """Returns the likelihood of each continuation after its context; logits are normalised in float32.

    Requests with the same inputs, as answers of one token to one question have, go through the model once.
    The head runs at the scored positions only, `head_tokens` at once.

    Args:
        model: a transformers causal language model, attention attached or not.
        requests: see `Encoder`.
        tokens_per_batch: tokens that go through the model together, padding included.
        head_tokens: positions whose logits are in memory together.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        rows.setdefault(request.inputs, []).append(number)
    inputs = list(rows)
    found: dict[int, Likelihood] = {}
    for batch in batches([len(row) for row in inputs], tokens_per_batch=tokens_per_batch):
        numbers = [number for row in batch for number in rows[inputs[row]]]
        places = [place for place, row in enumerate(batch) for _ in rows[inputs[row]]]
        continuations = [requests[number].continuation for number in numbers]
        with torch.inference_mode():
            hidden = _hidden(model, [inputs[row] for row in batch])
            ends = [len(inputs[batch[place]]) for place in places]
            answers = _likelihoods(model, hidden, places, ends, continuations, head_tokens)
        found.update(zip(numbers, answers, strict=True))
    return [found[number] for number in range(len(requests))]


def _hidden(model: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
    """The decoder's last hidden states of rows, the longest first: [B, L, E]; padding's mean nothing."""
    causal_lm = unwrap(model)
    device, longest = causal_lm.device, len(rows[0])
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    arguments = {}
    if attached(causal_lm) is not None and len(rows[-1]) < longest:
        lengths = torch.tensor([len(row) for row in rows], device=device)
        arguments["attention_mask"] = (torch.arange(longest, device=device) < lengths[:, None]).long()
    decoder = getattr(causal_lm, causal_lm.base_model_prefix)
    hidden: Tensor = decoder(input_ids=padded, use_cache=False, **arguments).last_hidden_state
    return hidden


def _likelihoods(
    model: nn.Module,
    hidden: Tensor,
    places: Sequence[int],
    ends: Sequence[int],
    continuations: Sequence[Sequence[int]],
    head_tokens: int,
) -> list[Likelihood]:
    """For each continuation, which ends row `places` of hidden [B, L, E] at `ends`, its likelihood."""
    lengths = [len(continuation) for continuation in continuations]
    spans = list(zip(places, ends, lengths, strict=True))
    device = hidden.device
    rows = torch.tensor([place for place, _, length in spans for _ in range(length)], device=device)
    positions = torch.tensor(
        [at for _, end, length in spans for at in range(end - length, end)], device=device
    )
    targets = torch.tensor([token for each in continuations for token in each], device=device)
    head = head_of(unwrap(model))
    nats, first_choices = [], []
    for part, wanted in zip(
        hidden[rows, positions].split(head_tokens), targets.split(head_tokens), strict=True
    ):
        logits = head(part).float()
        chosen = logits.gather(1, wanted[:, None])[:, 0]
        nats.append(chosen - logits.logsumexp(dim=1))
        first_choices.append(logits.argmax(dim=1) == wanted)
    # In float64, so that a long text's sum loses nothing.
    each_nats = torch.cat(nats).double().cpu().split(lengths)
    each_choice = torch.cat(first_choices).cpu().split(lengths)
    return [
        (float(some.sum()), bool(right.all())) for some, right in zip(each_nats, each_choice, strict=True)
    ]
