"""What a causal language model predicts at chosen positions, without holding the `L x vocabulary` logits.

For scoring: how likely it finds tokens that are there, and whether each is its first choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from se_model.loss import head_of, last_hidden_states, unwrap

if TYPE_CHECKING:
    from se_model.parallel import SequenceShard
    from se_model.span.documents import DocumentBounds


class Predictions(NamedTuple):
    """Of each target, [N]: the logarithm of its probability, in float32 or wider, and whether the model finds
    no other token likelier.
    """

    log_likelihoods: Tensor
    first_choice: Tensor


@torch.inference_mode()
def predictions(
    model: nn.Module,
    input_ids: Tensor,
    rows: Tensor,
    positions: Tensor,
    targets: Tensor,
    *,
    documents: DocumentBounds | None = None,
    shard: SequenceShard | None = None,
    attention_mask: Tensor | None = None,
    head_tokens: int = 1024,
) -> Predictions:
    """How `model` predicts ``targets`` ([N]), each right behind a position ([N]) of a row ([N]) of input_ids.

    input_ids: [B, L]; documents: of a packed row, as for `causal_lm_loss`; attention_mask: [B, L], of rows
    with padding. The head runs on `head_tokens` positions at a time, and only on those asked for.

    shard: this rank's part of the rows, under context parallelism. Every rank is given the same arguments but
    for its shard, and every rank returns all predictions.

    Raises:
        ValueError: as `causal_lm_loss`.
    """
    causal_lm = unwrap(model)
    hidden = last_hidden_states(causal_lm, input_ids, documents, shard, attention_mask)
    if shard is not None:
        here = (positions >= shard.start) & (positions < shard.end)
        rows, positions, targets = rows[here], positions[here] - shard.start, targets[here]
    head = head_of(causal_lm)
    chunks = zip(hidden[rows, positions].split(head_tokens), targets.split(head_tokens), strict=True)
    found = [_predict(head(states), wanted) for states, wanted in chunks]
    likelihoods, first = (torch.cat(each) for each in zip(*found, strict=True))
    if shard is not None:
        likelihoods, first = (_of_all_ranks(each, here, shard) for each in (likelihoods, first))
    return Predictions(likelihoods, first)


def _predict(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    likelihoods = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
    return likelihoods, logits.argmax(dim=-1) == targets


def _of_all_ranks(own: Tensor, here: Tensor, shard: SequenceShard) -> Tensor:
    """All predictions. own: those behind this rank's tokens, which the mask ``here`` [N] chooses."""
    all_of_them = own.new_zeros(here.shape).masked_scatter(here, own)
    # Each is another rank's zero but for the rank that made it.
    return shard.group.all_gather(all_of_them, purpose="predictions").sum(0).to(own.dtype)
