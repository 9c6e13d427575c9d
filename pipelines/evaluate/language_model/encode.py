"""Requests as tokens: how many there are is known, and whether they fit, before a model sees any.

Tokens are those of lm-eval's `HFLM` (0.4.13): a context's trailing spaces belong to its continuation, texts
begin as the tokenizer begins them, and where there is no context one token, BOS or else EOS, stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval.models.utils import DEFAULT_MAX_LENGTH, resolve_max_length
from lm_eval.utils import get_rolling_token_windows

from pipelines.errors import EspanError
from pipelines.evaluate.language_model.token_ids import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


class TooLongError(EspanError):
    """A request has more tokens than a row may have.

    Attributes:
        tokens: of the request, those to be generated included.
        limit: the most that a row may have.
    """

    def __init__(self, what: str, tokens: int, limit: int) -> None:
        self.tokens, self.limit = tokens, limit
        super().__init__(
            f"{what} is {tokens:,} tokens, and a row may have {limit:,}; nothing is truncated: ask for less, "
            "or raise the limit if the model can read more"
        )


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens to be scored, each after all before it.

    Attributes:
        context: at least one token, not scored.
        continuation: at least one token, every one scored.
    """

    context: TokenIds
    continuation: TokenIds

    @property
    def inputs(self) -> TokenIds:
        """Tokens that go through the model: all but the last."""
        return (self.context + self.continuation)[:-1]

    @property
    def tokens(self) -> int:
        """How many go through the model."""
        return len(self.context) + len(self.continuation) - 1


@dataclass(frozen=True)
class Prompt:
    """Tokens to be continued.

    Attributes:
        inputs: at least one token.
        max_new_tokens: the most that are generated; at least 1.
    """

    inputs: TokenIds
    max_new_tokens: int

    @property
    def tokens(self) -> int:
        """How many a row has at the end, if nothing stops it."""
        return len(self.inputs) + self.max_new_tokens


@dataclass(frozen=True)
class Encoder:
    """Encodes requests for one model.

    Attributes:
        tokenizer: the model's.
        limit: the most tokens that a row may have; None for any number.
        add_bos: whether texts begin with the tokenizer's BOS token; None for as it does by default.
    """

    tokenizer: PreTrainedTokenizerBase
    limit: int | None = None
    add_bos: bool | None = None

    @classmethod
    def of(
        cls,
        config: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        add_bos: bool | None = None,
    ) -> Encoder:
        """Returns the encoder for a model with this configuration.

        max_length: the most tokens that a row may have; by default the model's positions, else what the
            tokenizer says, else any number.
        """
        return cls(tokenizer, max_length or resolve_max_length(config, tokenizer, default=0) or None, add_bos)

    @property
    def prefix(self) -> int:
        """The token that stands for an empty context: BOS, or EOS where there is no BOS.

        Raises:
            EspanError: the tokenizer has neither.
        """
        if self._prefix_text is not None:
            return int(self.tokenizer.convert_tokens_to_ids(self._prefix_text))
        raise EspanError(
            "a text without context is scored after the tokenizer's BOS or EOS token, and it has neither; "
            "set bos_token or eos_token in its tokenizer_config.json"
        )

    def pair(self, context: str, continuation: str) -> ScoredTokens:
        """Encodes a continuation to be scored after a context, which may be empty.

        Raises:
            EspanError: the continuation has no token, or the pair too many (`TooLongError`).
        """
        bare = context.rstrip()
        moved = context[len(bare) :] + continuation
        before = self._text(bare) if bare else []
        if before:
            after = self._text(bare + moved)[len(before) :]
        else:
            before, after = [self.prefix], self._encoded(moved, special=False)
            if after[:1] == before:  # a text that begins so itself
                after = after[1:]
        if not after:
            raise EspanError(
                f"a continuation of {len(continuation)} characters, {continuation[:40]!r}, adds no token to "
                "its context, so there is nothing to score; leave it out"
            )
        found = ScoredTokens(TokenIds.of(before), TokenIds.of(after))
        self._check("a context with its continuation", found.tokens)
        return found

    def windows(self, text: str) -> list[ScoredTokens]:
        """Encodes a whole text to be scored: rows in which each of its tokens is scored once.

        A row is as long as the limit allows; without one, lm-eval's 2,048. Each begins with one token of
        context, the last one with as many as fit. An empty text has no rows.
        """
        rows = get_rolling_token_windows(
            self._text(text), self.prefix, max_seq_len=self.limit or DEFAULT_MAX_LENGTH, context_len=1
        )
        # A row's inputs reach to its last token but one, over those that are scored.
        return [
            ScoredTokens(TokenIds.of(inputs[: len(inputs) - len(scored) + 1]), TokenIds.of(scored))
            for inputs, scored in rows
        ]

    def prompt(self, text: str, max_new_tokens: int) -> Prompt:
        """Encodes a text to be continued; an empty one as the token that stands for an empty context.

        Raises:
            TooLongError: with the tokens to be generated, it has too many.
        """
        begun = _starts_with(text, special_token(self.tokenizer, "bos_token"))
        inputs = self._encoded(text, special=False if begun else self.add_bos) or [self.prefix]
        found = Prompt(TokenIds.of(inputs), max_new_tokens)
        self._check(f"a prompt with {max_new_tokens:,} tokens to be generated", found.tokens)
        return found

    def _text(self, text: str) -> list[int]:
        """Encodes a text as the tokenizer begins it, unless it begins so itself."""
        begun = _starts_with(text, self._prefix_text)
        return self._encoded(text, special=False if begun else self.add_bos)

    @property
    def _prefix_text(self) -> str | None:
        return special_token(self.tokenizer, "bos_token") or special_token(self.tokenizer, "eos_token")

    def _encoded(self, text: str, *, special: bool | None) -> list[int]:
        encode: Callable[..., list[int]] = self.tokenizer.encode
        return encode(text) if special is None else encode(text, add_special_tokens=special)

    def _check(self, what: str, tokens: int) -> None:
        if self.limit is not None and tokens > self.limit:
            raise TooLongError(what, tokens, self.limit)


def special_token(tokenizer: PreTrainedTokenizerBase, name: str) -> str | None:
    """Returns a special token of the tokenizer, such as its `eos_token`, by name; None where it has none."""
    token = tokenizer.special_tokens_map.get(name)  # the attribute logs an error where there is none
    return str(token) if token else None


def _starts_with(text: str, token: str | None) -> bool:
    return token is not None and text.startswith(token)
