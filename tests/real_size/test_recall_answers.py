"""A recall prompt is running text, and its answers are the tokens that the needles have there."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from pipelines.needles.compose import needle_document, recall_prompt
from pipelines.prepare import tokenize
from pipelines.prepare.tokenize import encode_documents
from pipelines.recipe.keys.needles import RECALL_TASKS, NeedleDocuments, RecallTask
from tests.real_size.text_tokenizers import KINDS, Kind, fast_tokenizer

LENGTH = 400


def token_texts(tokenizer: PreTrainedTokenizerFast, input_ids: list[int]) -> list[str]:
    """Returns what each token adds to the text before it."""
    texts = [tokenizer.decode(input_ids[:count]) for count in range(len(input_ids) + 1)]
    return [after[len(before) :] for before, after in pairwise(texts)]


def copied(pieces: list[str], answer: int) -> list[int]:
    """Returns which tokens hold the value of the key before token `answer`.

    So answers a model that does nothing but look up the note about the last word it read, and copy.
    """
    text = "".join(pieces[:answer])
    told = f": {text.split()[-1]} "
    value = text.index(told) + len(told)
    if not text[value:].split()[0].isdigit():  # a key that has the value of another
        told = f": {text[value:].split()[0]} "
        value = text.index(told) + len(told)
    ends = np.cumsum([len(piece) for piece in pieces[:answer]])
    starts = np.concatenate([[0], ends[:-1]])
    last = value + len(text[value:].split()[0])
    return np.nonzero((ends > value) & (starts < last))[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", RECALL_TASKS)
def test_copying_the_needles_tokens_answers_every_question(kind: Kind, task: RecallTask) -> None:
    tokenizer = fast_tokenizer(kind)
    for index in range(3):
        sample = recall_prompt(task, length=LENGTH, seed=3, index=index, tokenizer=tokenizer)
        assert len(sample.input_ids) == LENGTH
        pieces = token_texts(tokenizer, sample.input_ids)
        for start, end in sample.answer_spans:
            answer = sample.input_ids[start:end]
            assert [sample.input_ids[token] for token in copied(pieces, start)] == answer
            value = "".join(pieces[start:end]).strip()
            assert value == tokenizer.decode(answer).strip()
            assert value.isdigit()
            assert "".join(pieces[:start]).split()[-2:-1] == [":"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_its_own_text_encoded_at_once(kind: Kind) -> None:
    tokenizer = fast_tokenizer(kind)
    sample = recall_prompt("multi_query", length=LENGTH, seed=3, index=0, tokenizer=tokenizer)
    text = tokenizer.decode(sample.input_ids)
    assert "  " not in text
    # Behind the first words, which the cut at the front may have parted.
    assert tokenizer(text, add_special_tokens=False).input_ids[-LENGTH + 10 :] == sample.input_ids[10:]


@pytest.mark.parametrize("length", [300, 301, 302, 1000])
def test_tokens_that_reach_over_sentences_change_no_length_and_lose_no_needle(length: int) -> None:
    tokenizer = fast_tokenizer("joining")
    for index in range(5):
        sample = recall_prompt("multi_key", length=length, seed=3, index=index, tokenizer=tokenizer)
        assert len(sample.input_ids) == length
        words = tokenizer.decode(sample.input_ids).split()
        told = {key: value for key, value in pairwise(words[: words.index("recall")]) if value.isdigit()}
        assert len(told) == 8
        assert told[words[-3]] == words[-2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_document_has_the_tokens_of_its_text_encoded_at_once(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = fast_tokenizer(kind).backend_tokenizer
    words = needle_document(NeedleDocuments(tokens=600), seed=3, index=0)
    lines = words.replace(" . ", " .\n")
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in (words, lines)]
    for limit in (100, 333, 1000):
        monkeypatch.setattr(tokenize, "_BATCH_CHARACTERS", limit)
        assert [tokens.tolist() for tokens in encode_documents(tokenizer, [words, lines])] == whole
