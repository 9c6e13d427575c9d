"""Long documents are tokenised piecewise, with the tokens they have as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipelines.prepare import tokenize
from pipelines.prepare.tokenize import encode_documents, stretches

SAMPLE = "It was the best of times,\nit was the worst of times;\n\n\tIt was  the age\nof wisdom.\n\n\n" * 40


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module", params=["gpt-2", "llama-3"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """A byte-pair encoding with the pre-tokenizer of a well-known one."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=request.param == "gpt-2")
    steps = [byte_level] if request.param == "gpt-2" else [split, byte_level]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return tokenizer


@given(text=st.text("ab \n", max_size=80), limit=st.integers(1, 20))
def test_stretches_are_the_text_and_none_is_too_long(text: str, limit: int) -> None:
    pieces = list(stretches(text, limit))
    assert "".join(pieces) == text
    assert all(len(piece) <= limit for piece in pieces)


def test_cutting_at_line_ends_changes_no_token(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [SAMPLE, "a short one", SAMPLE[::-1], "x"]
    whole = [tokenizer.encode(document).ids for document in documents]
    for limit in range(100, 200):
        monkeypatch.setattr(tokenize, "_BATCH_CHARACTERS", limit)
        found = list(encode_documents(tokenizer, documents))
        assert [tokens.tolist() for tokens in found] == whole
        assert {tokens.dtype for tokens in found} == {np.dtype(np.int32)}


def test_where_no_line_end_stands_alone_the_cut_still_fits_gpt_2() -> None:
    text = "It was the best of times.\n\n\n" * 20
    assert all(piece.startswith("\nIt") for piece in list(stretches(text, 50))[1:])


def test_tokens_decode_to_the_document(tokenizer: Tokenizer) -> None:
    (tokens,) = encode_documents(tokenizer, [SAMPLE])
    assert tokenizer.decode(tokens.tolist()) == SAMPLE
