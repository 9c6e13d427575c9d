"""Text as the tokens it has in the middle of a longer text, and which of them hold given characters.

Tokenizers treat the beginning of a text specially: those of SentencePiece's kind put a mark there that
running text has only where a blank stands. So nothing is encoded in parts that are then put together: a text
is encoded once, behind a lead-in whose tokens are dropped, and answers are found in it by their characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAD_IN = "."


@dataclass(frozen=True)
class RunningTokens:
    """The tokens of a text.

    Attributes:
        input_ids: [N].
        starts: the first character of each token, int64 [N]; `ends`: one behind its last.
    """

    input_ids: list[int]
    starts: np.ndarray
    ends: np.ndarray

    def first_at(self, character: int) -> int:
        """Returns the first token that holds `character` or one behind it."""
        return int(np.argmax(self.ends > character)) if len(self.ends) else 0

    def holding(self, start: int, end: int) -> tuple[int, int]:
        """Returns the tokens, as a half-open range, that hold any of the characters from `start` to `end`.

        A token that reaches over a border belongs to the range as a whole: a word with the blank before it,
        as byte-level tokenizers have it, or a number with the full stop behind it. The range is empty where
        no token holds any of them.
        """
        (tokens,) = np.nonzero((self.ends > start) & (self.starts < end))
        return (int(tokens[0]), int(tokens[-1]) + 1) if len(tokens) else (0, 0)


def running_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> RunningTokens:
    """Returns the tokens of `text`, encoded once, as they are behind a blank in the middle of a text.

    Tokens that a blank before `text` has by itself are among them. Time and memory are linear in the text.
    """
    encoded = _encoded(tokenizer, f"{_LEAD_IN} {text}")
    lead = int(np.count_nonzero(encoded.starts < len(_LEAD_IN)))
    moved = len(_LEAD_IN) + 1
    return RunningTokens(encoded.input_ids[lead:], encoded.starts[lead:] - moved, encoded.ends[lead:] - moved)


def tokens_again(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int]) -> tuple[str, RunningTokens]:
    """Returns the text of tokens, none of them special, and which of its characters each of them holds.

    Raises:
        ValueError: the text, encoded again, gives other tokens, or none.
    """
    given = list(input_ids)
    text = tokenizer.decode(given, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    try:
        tokens = _encoded(tokenizer, text)
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise ValueError(f"the text of these tokens cannot be encoded again: {error}") from error
    if tokens.input_ids != given:
        raise ValueError("the text of these tokens, encoded again, gives other tokens")
    return text, tokens


def token_count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Returns how many tokens `text` has behind a blank in the middle of a text."""
    return len(running_tokens(tokenizer, text).input_ids)


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> RunningTokens:
    """Returns the tokens of `text` as it is, without any that only begin or end a text."""
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,  # else a text longer than the model's usual context gives a warning
    )
    offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return RunningTokens(encoded["input_ids"], offsets[:, 0], offsets[:, 1])
