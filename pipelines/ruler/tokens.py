"""Prompts as a model's tokenizer sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.errors import EspanError
from pipelines.recipe.keys.ruler import RulerTask
from pipelines.ruler.tasks import delimiter

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerFast

MOST_UNKNOWN = 0.01
"""The share of a prompt's words that a tokenizer need not know."""


def prompt_text(task: RulerTask, prompt_input: str, gen_prefix: str) -> str:
    """Returns what the model is given: the two parts as lm-eval puts them together."""
    return f"{prompt_input}{delimiter(task)}{gen_prefix}"


def encode(tokenizer: PreTrainedTokenizerFast, text: str, *, special: bool = True) -> BatchEncoding:
    """Returns the tokens of a text and their characters; `special`: those that begin or end any text too."""
    # Not verbose: else a text longer than the model's usual context gives a warning.
    return tokenizer(
        text,
        add_special_tokens=special,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )


def unknown_share(
    tokenizer: PreTrainedTokenizerFast, task: RulerTask, documents: Iterable[Mapping[str, Any]]
) -> float:
    """Returns the share of words in prompts that have letters without a token, or with the unknown one.

    Words are what white space divides, and each counts as often as it occurs.
    """
    words = unknown = 0
    for document in documents:
        text = prompt_text(task, document["input"], document["gen_prefix"])
        known = _known_characters(tokenizer, text)
        blank = np.fromiter(map(str.isspace, text), bool, len(text))
        begins = ~blank & np.concatenate([[True], blank[:-1]])
        number = np.cumsum(begins)
        words += int(number[-1])
        unknown += len(np.unique(number[~blank & ~known]))
    return unknown / max(words, 1)


def check_known(
    tokenizer: PreTrainedTokenizerFast, task: RulerTask, documents: Iterable[Mapping[str, Any]]
) -> None:
    """Refuses a tokenizer that cannot read prompts: what it does not know, no model can repeat.

    Raises:
        EspanError: more than 1% of their words are unknown to it.
    """
    share = unknown_share(tokenizer, task, documents)
    if share > MOST_UNKNOWN:
        raise EspanError(
            f"RULER's {task}: {share:.1%} of the prompts' words are unknown to the tokenizer, more than "
            f"{MOST_UNKNOWN:.0%}; give one that knows English words, numbers and punctuation"
        )


def _known_characters(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """Returns for each character whether a token other than the unknown one holds it: bool [characters]."""
    encoded = encode(tokenizer, text)
    ids = np.asarray(encoded["input_ids"])
    spans = np.asarray(encoded["offset_mapping"]).reshape(-1, 2)
    spans = spans[ids != tokenizer.unk_token_id] if tokenizer.unk_token_id is not None else spans
    change = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(change, spans[:, 0], 1)
    np.add.at(change, spans[:, 1], -1)
    return np.cumsum(change)[:-1] > 0
