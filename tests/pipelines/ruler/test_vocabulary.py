"""The tokenizer that ships for small models of RULER's tasks writes any text, and two digits at a time."""

from __future__ import annotations

import json
import string

import pytest
from transformers import PreTrainedTokenizerFast

from pipelines.models.builtin import builtin
from pipelines.models.tokenizers import load_tokenizer
from pipelines.ruler.vocabulary import ruler_tokenizer


@pytest.fixture(scope="module")
def shipped() -> PreTrainedTokenizerFast:
    return load_tokenizer("builtin:ruler-tiny")


def test_the_shipped_tokenizer_is_the_one_that_is_trained(shipped: PreTrainedTokenizerFast) -> None:
    trained = ruler_tokenizer()
    definitions = [json.loads(each.backend_tokenizer.to_str()) for each in (shipped, trained)]
    assert definitions[0] == definitions[1]
    assert shipped.eos_token_id == trained.eos_token_id == 0
    assert json.loads((builtin("ruler-tiny") / "tokenizer_config.json").read_text())["eos_token"] == "<eos>"


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n a  b\t", "Grüße, 東京! 🙂", "".join(map(chr, range(1, 768)))]
)
def test_any_text_is_written_and_read_back(shipped: PreTrainedTokenizerFast, text: str) -> None:
    assert shipped.decode(shipped(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_two_digits_are_a_token_and_so_is_a_letter_behind_a_blank(shipped: PreTrainedTokenizerFast) -> None:
    blank = shipped.tokenize(" ")
    assert shipped.tokenize(" 4815162") == [*blank, "48", "15", "16", "2"]
    assert [number for number in range(100) if len(shipped.tokenize(f"{number:02}")) > 1] == []
    assert [word for word in shipped.get_vocab() if sum(map(str.isdigit, word)) > 2] == []
    assert [letter for letter in string.ascii_letters if len(shipped.tokenize(f" {letter}")) > 1] == []
