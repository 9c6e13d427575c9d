"""What a model keeps of the tokens so far: how many bytes that takes, and rows of it joined or left out.

Recurrent layers keep states, which padding would change. So prompts of unequal length are read apart, and
what is kept of them is joined: states as they are; keys and values padded on the left, where a mask hides
them. Nothing is asked of the architecture but that its cache is made of layers known here (transformers
5.23).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, cache_utils

from pipelines.errors import EspanError
from pipelines.evaluate.language_model.batches import Fits
from pipelines.evaluate.language_model.in_place import InPlace
from se_model.loss import unwrap

_KNOWN_LAYERS = (
    cache_utils.DynamicLayer,
    cache_utils.DynamicSlidingWindowLayer,
    cache_utils.LinearAttentionLayer,
    cache_utils.LinearAttentionAndFullAttentionLayer,
    cache_utils.LinearAttentionAndSlidingWindowAttentionLayer,
    cache_utils.DummyLayer,
)
CACHE_BYTES = 1 << 30
"""What is kept of rows that are decoded together takes no more, unless a single row does."""

_BY_TOKEN = ("keys", "values")
_STATES = ("conv_states", "recurrent_states")


@dataclass(frozen=True)
class CacheSize:
    """Bytes that a model keeps of one row.

    Attributes:
        states: whatever its length.
        layers: for each layer with keys and values, bytes of a token, and how many tokens it keeps at most
            (None: all).
    """

    states: int
    layers: tuple[tuple[int, int | None], ...]

    def bytes(self, tokens: int, rows: int = 1) -> int:
        """Returns the bytes of `rows` rows of `tokens` tokens each, padding included."""
        kept = sum(each * (tokens if most is None else min(tokens, most)) for each, most in self.layers)
        return rows * (self.states + kept)

    def within(self, most: int) -> Fits:
        """Returns what says whether rows take at most so many bytes."""
        return lambda rows, tokens: self.bytes(tokens, rows) <= most


def cache_size(config: PreTrainedConfig, dtype: torch.dtype) -> CacheSize:
    """Returns what a model keeps of a row, found by running it on one token without memory.

    Args:
        config: the model's; attached attention keeps what full attention does.
        dtype: of the weights.

    Raises:
        EspanError: its cache is none that is known here.
    """
    # An attached model's configuration names an attention that only that model has.
    with torch.device("meta"), torch.no_grad():
        model: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(config),
            dtype=dtype,
            attn_implementation="eager",
            experts_implementation="batched_mm",  # the others look at values, or at no float32
        )
        decoder = getattr(model.eval(), model.base_model_prefix)
        output = decoder(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True)
    cache = known_cache(output, model)
    states, layers = 0, []
    for layer in cache.layers:
        states += sum(tensor.nbytes for _, _, tensor in _tensors(layer, _STATES))
        if by_token := sum(tensor.nbytes for _, _, tensor in _tensors(layer, _BY_TOKEN)):
            window = getattr(layer, "sliding_window", None)
            layers.append((by_token, None if window is None else window - 1))
    return CacheSize(states, tuple(layers))


def cache_bytes(model: nn.Module, tokens: int, rows: int = 1) -> int:
    """Returns the bytes that `model` keeps of `rows` rows of `tokens` tokens; see `cache_size`.

    Decoding span attention (`SpanConfig(decoding="span")`) keeps summaries of blocks beside them.
    """
    causal_lm = unwrap(model)
    return cache_size(causal_lm.config, causal_lm.dtype).bytes(tokens, rows)


def known_cache(output: Any, model: nn.Module) -> DynamicCache:
    """Returns the cache in what a model's decoder returned.

    Raises:
        EspanError: it is none that is known here, or has a layer that is not.
    """
    cache: Any = getattr(output, "past_key_values", None)
    parts = cache.layers if type(cache) is DynamicCache else [cache]
    unknown = [type(part).__name__ for part in parts if type(part) not in _KNOWN_LAYERS]
    if unknown:
        kept = "returns no cache" if cache is None else f"keeps its past in a {unknown[0]}"
        raise EspanError(
            f"{type(unwrap(model)).__name__} {kept}: it cannot generate here, but log-likelihoods can be had"
        )
    return cache


def join(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Returns one cache with the rows of all, whose shorter ones begin with padding: zeros, to be masked.

    It is what a forward over all rows, padded on the left, would have kept. The caches are used up, layer by
    layer, so that only one layer at a time is there twice.
    """
    joined = caches[0]
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        first = layers[0]
        for name, index, tensor in list(_tensors(first, _BY_TOKEN + _STATES)):
            parts = [_tensor(layer, name, index) for layer in layers]
            _put(first, name, index, _padded(parts) if name in _BY_TOKEN else torch.cat(parts))
            for layer in layers[1:]:
                _put(layer, name, index, tensor.new_empty(0))  # an empty view would keep what it is a view of
        if hasattr(first, "cumulative_length"):
            first.cumulative_length = max(layer.cumulative_length for layer in layers)
    return joined


def select(cache: DynamicCache, rows: Tensor) -> None:
    """Keeps of a cache the rows with these numbers, int64 [n], in this order."""
    for layer in cache.layers:
        if isinstance(layer, InPlace):
            layer.keep(rows)
        others = _STATES if isinstance(layer, InPlace) else _BY_TOKEN + _STATES
        for name, index, tensor in list(_tensors(layer, others)):
            _put(layer, name, index, tensor.index_select(0, rows))


def kept_bytes(cache: DynamicCache) -> int:
    """Returns the bytes of a cache's tensors."""
    return sum(
        tensor.nbytes for layer in cache.layers for _, _, tensor in _tensors(layer, _BY_TOKEN + _STATES)
    )


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Keys or values [B, G, n, D] of unequal n, one under the other: [sum of B, G, largest n, D]."""
    rows, longest = sum(part.shape[0] for part in parts), max(part.shape[2] for part in parts)
    joined = parts[0].new_zeros(rows, parts[0].shape[1], longest, parts[0].shape[3])
    first = 0
    for part in parts:
        joined[first : first + part.shape[0], :, longest - part.shape[2] :] = part
        first += part.shape[0]
    return joined


def _tensors(layer: Any, names: Sequence[str]) -> Iterator[tuple[str, int | None, Tensor]]:
    """A layer's tensors, each with its name and, where a layer has several states, its number."""
    for name in names:
        held = getattr(layer, name, None)
        for index, tensor in held.items() if isinstance(held, dict) else [(None, held)]:
            if isinstance(tensor, Tensor) and tensor.numel():
                yield name, index, tensor


def _tensor(layer: Any, name: str, index: int | None) -> Tensor:
    held = getattr(layer, name)
    tensor: Tensor = held if index is None else held[index]
    return tensor


def _put(layer: Any, name: str, index: int | None, tensor: Tensor) -> None:
    if index is None:
        setattr(layer, name, tensor)
    else:
        getattr(layer, name)[index] = tensor
