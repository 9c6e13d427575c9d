"""Greedy decoding of a batch of prompts, over a cache.

Prompts of one length are read together, all others apart, and their caches joined: so nothing is asked of
recurrent layers, of which only some leave padding out. Then all rows go on together, one token at a time,
and a row that has ended leaves the batch. Where an attached attention decodes with a state of its own,
which cannot be joined (`SpanConfig(decoding="span")`), the prompts are read together, padded on the left,
as every attached model can be.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pipelines.evaluate.language_model.batches import at_most, batches
from pipelines.evaluate.language_model.cache import join, known_cache, select
from pipelines.evaluate.language_model.encode import Prompt
from pipelines.evaluate.language_model.in_place import reserve
from pipelines.evaluate.language_model.stopping import Stops, check_greedy
from se_model import SpanConfig
from se_model.attach import attached
from se_model.loss import head_of, unwrap


def complete(
    model: nn.Module, prompts: Sequence[Prompt], stops: Stops, *, tokens_per_batch: int = 4096
) -> list[str]:
    """Returns what greedy decoding writes after each prompt, before the first stop.

    Args:
        model: a transformers causal language model, attention attached or not.
        prompts: decoded together; see `continue_prompts`.
        stops: what ends a text.
        tokens_per_batch: of prompts that are read together.

    Raises:
        EspanError: as `check_greedy` and `continue_prompts`.
    """
    if (settings := unwrap(model).generation_config) is not None:
        check_greedy(settings)
    generated = continue_prompts(model, prompts, ends=stops.end, tokens_per_batch=tokens_per_batch)
    return [stops.text(tokens) for tokens in generated]


def continue_prompts(
    model: nn.Module,
    prompts: Sequence[Prompt],
    *,
    ends: Callable[[Sequence[int]], bool],
    tokens_per_batch: int = 4096,
) -> list[list[int]]:
    """Returns for each prompt the likeliest next tokens, the one that ended it included.

    Args:
        model: a transformers causal language model, attention attached or not.
        prompts: decoded as one batch; `cache_bytes` says what that takes.
        ends: whether a row's new tokens so far are its last; beside it, those end it that the model's
            generation configuration names (`eos_token_id`), and so many as its prompt asks for.
        tokens_per_batch: of prompts that are read together.

    Raises:
        EspanError: the model's cache is none that is known here.
    """
    last = _ends_of(model)
    generated: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    with torch.inference_mode():
        rows = _Rows(model, prompts, tokens_per_batch)
        while True:
            going = []
            for place, (row, token) in enumerate(zip(rows.numbers, rows.choose(), strict=True)):
                if ended[row]:
                    continue
                tokens = generated[row]
                tokens.append(token)
                ended[row] = len(tokens) == prompts[row].max_new_tokens or token in last or ends(tokens)
                if not ended[row]:
                    going.append(place)
            if not going:
                return generated
            rows.keep(going)
            rows.advance()


class _Rows:
    """The rows of a batch: tokens, what the model keeps of them, and what it makes of the last.

    Attributes:
        numbers: for each row, which prompt it began with.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Prompt], tokens_per_batch: int) -> None:
        self.causal_lm = unwrap(model)
        self.decoder: Any = getattr(self.causal_lm, self.causal_lm.base_model_prefix)
        self.device = self.causal_lm.device
        attention = attached(self.causal_lm)
        self.apart = not (isinstance(attention, SpanConfig) and attention.decoding == "span")
        lengths = [len(prompt.inputs) for prompt in prompts]
        groups = batches(lengths, at_most(tokens_per_batch), alike=True)
        if not self.apart:
            groups = [[row for group in groups for row in group]]
        self.numbers = [row for group in groups for row in group]
        self.lengths = torch.tensor([lengths[row] for row in self.numbers], device=self.device)
        self.width = max(lengths)
        self.padded = min(lengths) < self.width
        read = [self._read([prompts[row].inputs for row in group]) for group in groups]
        self.cache = join([cache for cache, _ in read])
        reserve(self.cache, self.width + max(prompt.max_new_tokens for prompt in prompts))
        self.hidden = torch.cat([hidden for _, hidden in read])

    def choose(self) -> list[int]:
        """Chooses the likeliest next token of each row, and returns them."""
        self.chosen = head_of(self.causal_lm)(self.hidden).argmax(dim=-1)
        return [int(token) for token in self.chosen.tolist()]

    def keep(self, places: list[int]) -> None:
        """Leaves out all rows but those at these places, if rows can be left out."""
        if not self.apart or len(places) == len(self.numbers):
            return
        kept = torch.tensor(places, device=self.device)
        select(self.cache, kept)
        self.numbers = [self.numbers[place] for place in places]
        self.lengths, self.chosen = self.lengths[kept], self.chosen[kept]

    def advance(self) -> None:
        """Takes in the chosen token of each row."""
        self.lengths, self.width = self.lengths + 1, self.width + 1
        output = self._forward(self.chosen[:, None], self.lengths[:, None] - 1, self.cache)
        self.hidden = output.last_hidden_state[:, -1]

    def _read(self, prompts: list[Sequence[int]]) -> tuple[DynamicCache, Tensor]:
        """What is kept of prompts, and the hidden states of their last tokens, [B, E]."""
        width = max(map(len, prompts))
        tokens = [[*[0] * (width - len(prompt)), *prompt] for prompt in prompts]
        positions = None if self.apart else (self._mask().cumsum(1) - 1).clamp(min=0)
        output = self._forward(torch.tensor(tokens, device=self.device), positions, None)
        return known_cache(output, self.causal_lm), output.last_hidden_state[:, -1].clone()

    def _forward(self, tokens: Tensor, positions: Tensor | None, cache: DynamicCache | None) -> Any:
        """tokens: [B, L], the last of the rows; positions: [B, L]; None: from 0, without padding."""
        arguments: dict[str, Any] = {}
        if positions is not None and self.padded:
            arguments["attention_mask"] = self._mask()
        if positions is not None and "position_ids" in inspect.signature(self.decoder.forward).parameters:
            arguments["position_ids"] = positions
        return self.decoder(input_ids=tokens, past_key_values=cache, use_cache=True, **arguments)

    def _mask(self) -> Tensor:
        """Which tokens of the rows, padded on the left, are real: int64 [B, width]."""
        places = torch.arange(self.width, device=self.device)
        return (places >= self.width - self.lengths[:, None]).long()


def _ends_of(model: nn.Module) -> frozenset[int]:
    """The tokens that end a text by the model's generation configuration."""
    settings = unwrap(model).generation_config
    tokens = None if settings is None else settings.eos_token_id
    if tokens is None:
        return frozenset()
    return frozenset([tokens] if isinstance(tokens, int) else tokens)
