"""Answers to requests in text: tokens made of them, computed in batches, in the order of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from pipelines.evaluate.language_model.batches import batches
from pipelines.evaluate.language_model.encode import Encoder, Prompt
from pipelines.evaluate.language_model.generate import continue_prompts
from pipelines.evaluate.language_model.score import Likelihood, score
from pipelines.evaluate.language_model.stopping import MAX_NEW_TOKENS, Stops, check_greedy
from pipelines.evaluate.worker import Worker
from se_model.loss import unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_PER_CACHE = 65_536


def loglikelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    max_length: int | None = None,
    tokens_per_batch: int = 4096,
) -> list[Likelihood]:
    """Returns for each (context, continuation) the continuation's log-likelihood, and whether it is greedy.

    Raises:
        EspanError: as `Encoder.pair`.
    """
    encoder = Encoder.of(unwrap(model).config, tokenizer, max_length=max_length)
    return score(Worker(model), [encoder.pair(*pair) for pair in pairs], tokens_per_batch=tokens_per_batch)


def rolling_loglikelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    tokens_per_batch: int = 4096,
) -> list[float]:
    """Returns the log-likelihood of each text, every token of which is scored once; see `Encoder.windows`.

    Raises:
        EspanError: the tokenizer has neither a BOS nor an EOS token.
    """
    encoder = Encoder.of(unwrap(model).config, tokenizer, max_length=max_length)
    windows = [encoder.windows(text) for text in texts]
    scored = score(
        Worker(model), [each for some in windows for each in some], tokens_per_batch=tokens_per_batch
    )
    likelihoods = iter(scored)
    return [sum((next(likelihoods)[0] for _ in some), start=0.0) for some in windows]


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[str],
    *,
    stop: Sequence[str] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_length: int | None = None,
    tokens_per_batch: int = 4096,
    tokens_per_cache: int = TOKENS_PER_CACHE,
) -> list[str]:
    """Returns what greedy decoding writes after each context, before the first of the `stop` strings.

    Raises:
        EspanError: as `Encoder.prompt`, `check_greedy` and `continue_prompts`.
    """
    encoder = Encoder.of(unwrap(model).config, tokenizer, max_length=max_length)
    prompts = [encoder.prompt(context, max_new_tokens) for context in contexts]
    return complete(
        model,
        prompts,
        Stops.of(tokenizer, stop),
        tokens_per_batch=tokens_per_batch,
        tokens_per_cache=tokens_per_cache,
    )


def complete(
    model: nn.Module,
    prompts: Sequence[Prompt],
    stops: Stops,
    *,
    tokens_per_batch: int = 4096,
    tokens_per_cache: int = TOKENS_PER_CACHE,
) -> list[str]:
    """Returns what greedy decoding writes after each prompt, before the first stop.

    Args:
        model: a transformers causal language model, attention attached or not.
        prompts: see `Encoder`.
        stops: what ends a text.
        tokens_per_batch: of prompts that are read together.
        tokens_per_cache: of rows that are decoded together, padding and new tokens counted; `cache_bytes`
            says what they take.

    Raises:
        EspanError: as `check_greedy` and `continue_prompts`.
    """
    if (settings := unwrap(model).generation_config) is not None:
        check_greedy(settings)
    texts = [""] * len(prompts)
    for batch in batches([prompt.tokens for prompt in prompts], tokens_per_batch=tokens_per_cache):
        generated = continue_prompts(
            model,
            [prompts[row] for row in batch],
            ends=stops.end,
            tokens_per_batch=tokens_per_batch,
        )
        for row, tokens in zip(batch, generated, strict=True):
            texts[row] = stops.text(tokens)
    return texts
