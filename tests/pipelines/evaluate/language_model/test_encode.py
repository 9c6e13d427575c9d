"""Requests become the tokens that lm-eval makes of them, and one that is too long is refused."""

import pytest
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import LlamaConfig

from pipelines.errors import EspanError
from pipelines.evaluate.language_model.encode import Encoder, TooLongError
from pipelines.evaluate.language_model.token_ids import TokenIds
from se_model import Mamba2HybridConfig
from tests.pipelines.evaluate.language_model.tiny import lm_eval_model, train_tokenizer

PAIRS = [
    ("A tiny tokenizer", " and its models"),
    ("trailing spaces  ", "and more"),
    ("a line\n", "the next"),
    ("words", "words"),
    ("<s>begins itself", " and goes on"),
]


def asked_of(lm, monkeypatch, pairs):
    """The tokens that lm-eval's model would score."""
    tokens = []
    monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda requests, **_: tokens.extend(requests))
    lm.loglikelihood([type("Request", (), {"args": pair}) for pair in pairs], disable_tqdm=True)
    return [(tuple(context), tuple(continuation)) for _, context, continuation in tokens]


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("begins", [False, True])
def test_pairs_are_split_where_lm_eval_splits_them(
    tokenizer, beginning_tokenizer, begins, add_bos, model_of, monkeypatch
):
    chosen = beginning_tokenizer if begins else tokenizer
    lm = lm_eval_model(model_of("llama"), chosen, add_bos_token=add_bos)
    pairs = [*PAIRS, ("", "no context"), ("", "<s>begins itself")]
    found = [Encoder(chosen, add_bos=add_bos).pair(*pair) for pair in pairs]
    parts = [(tuple(each.context), tuple(each.continuation)) for each in found]
    assert parts == asked_of(lm, monkeypatch, pairs)
    assert all(each.tokens == len(each.inputs) for each in found)


def test_a_context_of_spaces_alone_is_none(tokenizer):
    encoder = Encoder(tokenizer)
    assert encoder.pair("  ", "word") == encoder.pair("", "  word")


@pytest.mark.parametrize("text", ["", "a", "byte " * 30, "<s>begins itself"])
@pytest.mark.parametrize("limit", [1, 5, 16, 400])
def test_every_token_of_a_text_is_scored_once_in_rows_as_long_as_the_limit(beginning_tokenizer, text, limit):
    found = Encoder(beginning_tokenizer, limit).windows(text)
    tokens = beginning_tokenizer.encode(text, add_special_tokens=not text.startswith("<s>"))
    rows = get_rolling_token_windows(tokens, beginning_tokenizer.bos_token_id, limit, 1)
    expected = [make_disjoint_window(row) for row in rows]
    assert [(list(each.context), list(each.continuation)) for each in found] == expected
    assert [token for each in found for token in each.continuation] == tokens
    assert all(each.tokens <= limit for each in found)


@pytest.mark.parametrize("text", ["A prompt", "<s>begins itself", ""])
@pytest.mark.parametrize("add_bos", [None, True, False])
def test_prompts_begin_as_with_lm_eval(beginning_tokenizer, model_of, text, add_bos):
    lm = lm_eval_model(model_of("llama"), beginning_tokenizer, add_bos_token=add_bos)
    expected = lm.tok_batch_encode([text])[0][0].tolist() or [beginning_tokenizer.bos_token_id]
    assert list(Encoder(beginning_tokenizer, add_bos=add_bos).prompt(text, 3).inputs) == expected


def test_what_does_not_fit_is_refused_with_its_tokens_and_the_limit(tokenizer):
    length = len(tokenizer.encode("context and continuation"))
    assert Encoder(tokenizer, length - 1).pair("context", " and continuation").tokens == length - 1
    with pytest.raises(
        TooLongError, match=f"is {length - 1} tokens, and a row may have {length - 2}"
    ) as caught:
        Encoder(tokenizer, length - 2).pair("context", " and continuation")
    assert (caught.value.tokens, caught.value.limit) == (length - 1, length - 2)
    prompt = Encoder(tokenizer, length + 5).prompt("context and continuation", 5)
    assert prompt.tokens == length + 5
    with pytest.raises(TooLongError, match="with 6 tokens to be generated"):
        Encoder(tokenizer, length + 5).prompt("context and continuation", 6)


def test_the_limit_is_the_given_one_or_the_models_or_the_tokenizers(tokenizer):
    config, endless = LlamaConfig(max_position_embeddings=77), Mamba2HybridConfig()
    assert Encoder.of(config, tokenizer).limit == 77
    assert Encoder.of(config, tokenizer, max_length=99).limit == 99
    assert Encoder.of(endless, tokenizer).limit is None
    assert Encoder.of(endless, train_tokenizer(model_max_length=55)).limit == 55


def test_a_continuation_without_tokens_and_a_text_without_beginning_are_refused(tokenizer):
    with pytest.raises(EspanError, match="of 0 characters, '', adds no token"):
        Encoder(tokenizer).pair("context", "")
    with pytest.raises(EspanError, match="neither; set bos_token or eos_token"):
        Encoder(train_tokenizer()).pair("", "text")
    assert Encoder(train_tokenizer(eos_token="</s>")).pair("", "text").context == TokenIds.of([2])
