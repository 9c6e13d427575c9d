"""Teacher-forced recall says what greedy decoding would write."""

from dataclasses import replace

import pytest
import torch

from pipelines.evaluate.recall import score_recall
from pipelines.evaluate.worker import Worker
from pipelines.needles.compose import RecallSample
from se_model import Mamba2HybridForCausalLM

PROMPT, ANSWER = 24, 3


@pytest.fixture(scope="module")
def continued(model: Mamba2HybridForCausalLM) -> list[RecallSample]:
    """Prompts whose answer is what the model writes when it decodes greedily."""
    prompts = torch.randint(0, 200, (5, PROMPT), generator=torch.Generator().manual_seed(1))
    written = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=ANSWER,
        do_sample=False,
        eos_token_id=None,
    )
    return [RecallSample(row.tolist(), [(PROMPT, PROMPT + ANSWER)], [0.0]) for row in written]


def with_token_changed(sample: RecallSample, position: int) -> RecallSample:
    tokens = list(sample.input_ids)
    tokens[position] = (tokens[position] + 1) % 200
    return replace(sample, input_ids=tokens)


def test_an_answer_that_greedy_decoding_writes_counts(
    model: Mamba2HybridForCausalLM, continued: list[RecallSample]
) -> None:
    assert score_recall(Worker(model), continued) == [[True]] * len(continued)


@pytest.mark.parametrize("wrong", range(ANSWER))
def test_an_answer_with_any_other_token_does_not_count(
    model: Mamba2HybridForCausalLM, continued: list[RecallSample], wrong: int
) -> None:
    samples = [with_token_changed(continued[0], PROMPT + wrong), *continued[1:]]
    assert score_recall(Worker(model), samples) == [[False], *[[True]] * (len(continued) - 1)]


def test_answers_of_one_prompt_are_judged_one_by_one(
    model: Mamba2HybridForCausalLM, continued: list[RecallSample]
) -> None:
    spans = [(PROMPT, PROMPT + 1), (PROMPT + 1, PROMPT + 3)]
    right = replace(continued[0], answer_spans=spans)
    # A wrong last token leaves the answer before it as it was.
    last_wrong = with_token_changed(right, PROMPT + 2)
    assert score_recall(Worker(model), [right, last_wrong]) == [[True, True], [True, False]]
