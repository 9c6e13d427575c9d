"""Recall: whether the model gives answers that can only be found far back in the prompt.

Scored without generating. The whole prompt, its right answers included, goes through the model once. An
answer counts when the model's first choice is right at each of its tokens: for a prompt with one answer that
is "greedy decoding writes the answer". Of several, a later one is read after the *right* earlier ones, so
that one mistake does not cause others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipelines.needles.compose import RecallSample
from se_model.loss import head_of


def score_recall(
    model: nn.Module, samples: Sequence[RecallSample], *, head_tokens: int = 1024
) -> list[list[bool]]:
    """Says for each sample, in order, whether the model gives each of its answers.

    All samples have the same number of tokens. The head runs at the answers' positions only, `head_tokens` at
    once.
    """
    device = next(model.parameters()).device
    input_ids = torch.tensor([sample.input_ids for sample in samples], device=device)
    answers = [(row, start, end) for row, sample in enumerate(samples) for start, end in sample.answer_spans]
    rows = torch.tensor([row for row, start, end in answers for _ in range(start, end)], device=device)
    positions = torch.tensor(
        [position for _, start, end in answers for position in range(start, end)], device=device
    )
    with torch.inference_mode():
        decoder = getattr(model, str(model.base_model_prefix))
        hidden: Tensor = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        # The state at t - 1 predicts token t.
        before_answers = hidden[rows, positions - 1]
        head = head_of(model)
        choices = torch.cat([head(chunk).argmax(dim=-1) for chunk in before_answers.split(head_tokens)])
        right = (choices == input_ids[rows, positions]).tolist()
    outcomes: list[list[bool]] = [[] for _ in samples]
    token = 0
    for row, start, end in answers:
        outcomes[row].append(all(right[token : token + end - start]))
        token += end - start
    return outcomes
