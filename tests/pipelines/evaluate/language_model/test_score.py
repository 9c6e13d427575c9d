"""Rows that are scored together are scored as each alone, and as lm-eval scores them."""

import itertools

import pytest
import torch

from pipelines.evaluate.language_model.model import EspanLM
from pipelines.evaluate.language_model.score import score
from pipelines.evaluate.worker import Worker
from se_model import SpanConfig, attach
from se_model.baselines import SlidingWindowConfig
from tests.pipelines.evaluate.language_model.tiny import (
    LIMIT,
    instances,
    lm_eval_model,
    random_rows,
    scored,
)
from tests.tolerances import F32

CONTEXTS = ["A tiny", "models of several architectures  ", "", "rows " * 20]
CONTINUATIONS = [" a", " b", " and what follows it", "x"]
PAIRS = list(itertools.product(CONTEXTS, CONTINUATIONS))
SPANS = [
    SpanConfig(chunk_sizes=8, block_size=4, top_k=1),
    SpanConfig(chunk_sizes=8, block_size=4, top_k=1, selection="causal"),
    SlidingWindowConfig(window=8),
]


def assert_alike(found, expected):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], rel=F32)


def test_log_likelihoods_are_those_of_lm_eval(model, tokenizer):
    expected = lm_eval_model(model, tokenizer).loglikelihood(instances("loglikelihood", *PAIRS), True)
    found = EspanLM(model, tokenizer, tokens_per_batch=100).loglikelihood(instances("loglikelihood", *PAIRS))
    assert_alike(found, expected)


def test_logits_are_scaled_as_the_model_scales_them(model_of, tokenizer):
    model = model_of("granitemoehybrid")
    model.config.logits_scaling = 3.0
    expected = lm_eval_model(model, tokenizer).loglikelihood(instances("loglikelihood", *PAIRS[:3]), True)
    found = EspanLM(model, tokenizer).loglikelihood(instances("loglikelihood", *PAIRS[:3]))
    assert_alike(found, expected)


def test_only_what_greedy_decoding_writes_is_greedy(model):
    (context,) = random_rows(20)
    row = context
    with torch.inference_mode():
        for _ in range(4):
            row = (*row, int(model(torch.tensor([row])).logits[0, -1].argmax()))
    requests = [scored(row, 20)]
    for place in range(20, 24):
        requests.append(scored((*row[:place], row[place] + 1, *row[place + 1 :]), 20))
    assert [greedy for _, greedy in score(Worker(model), requests)] == [True, False, False, False, False]


@pytest.mark.parametrize("text", ["", "one", "text that is longer than the rows " * 4])
def test_rolling_log_likelihoods_are_those_of_lm_eval(model, tokenizer, text):
    lm = lm_eval_model(model, tokenizer, max_length=24)
    (expected,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)), True)
    own = EspanLM(model, tokenizer, max_length=24, tokens_per_batch=60)
    found = own.loglikelihood_rolling(instances("loglikelihood_rolling", (text,), ("x",)))
    assert found[0] == pytest.approx(expected, rel=F32)


@pytest.mark.parametrize("config", [None, *SPANS], ids=["full", "span", "causal span", "window"])
@pytest.mark.parametrize("name", ["mamba2_hybrid", "qwen3_next"])
def test_rows_of_unequal_length_together_are_scored_as_each_alone(model_of, name, config):
    model = model_of(name) if config is None else attach(model_of(name), config)
    requests = [scored(row, len(row) // 3 + 1) for row in random_rows(61, 20, 45, 2, 33, 61, 7)]
    together = score(Worker(model, head_tokens=5), requests, tokens_per_batch=200)
    assert_alike(together, [score(Worker(model), [request])[0] for request in requests])


def test_span_attention_would_see_padding_that_it_is_not_told_of(model_of):
    """Why an attached model is given a mask: under chunk selection the padding's queries choose, too."""
    model = attach(model_of("llama"), SPANS[0])
    (row,) = random_rows(45)
    padded = torch.tensor([[*row, *[0] * 16]])
    with torch.inference_mode():
        apart = (model(padded).logits[:, : len(row)] - model(padded[:, : len(row)]).logits).abs().max()
    assert apart > 100 * F32


def test_answers_to_one_question_go_through_the_model_once(model_of, tokenizer):
    model, rows = model_of("llama"), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    EspanLM(model, tokenizer, max_length=LIMIT).loglikelihood(
        instances("loglikelihood", *[("A question:", answer) for answer in ("a", "b", "c")])
    )
    assert [shape[0] for shape in rows] == [1]
