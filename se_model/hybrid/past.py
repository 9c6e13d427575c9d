"""What came before the tokens that a mixer is given: nothing, what a cache holds, or other ranks' tokens.

A mixer asks its past and tells it what it has computed; it does not know which it is.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from transformers import Cache

from se_model.parallel import SequenceShard
from se_model.parallel.convolution import inputs_before
from se_model.recurrence import HandOver, InitialState


class Past:
    """Nothing came before, and nothing will come after."""

    def convolution_state(self, x: Tensor, context: int) -> Tensor | None:
        """What the convolution of x [B, L, C] looks at before it: [B, W - 1, C] for context W - 1."""
        return None

    def keep_convolution_state(self, x: Tensor, context: int) -> None:
        """Keeps the last of the convolution's inputs x [B, L, C] for the tokens after."""

    def initial_state(self, hand_over: HandOver) -> InitialState | None:
        """The recurrence's state before the first token, or what gives it."""
        return None

    def keep_state(self, state: Tensor) -> None:
        """Keeps the recurrence's state [B, H, P, N] behind the last token."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [B, G, L, D], after those of earlier tokens that attention is to see here."""
        return k, v


class CachedPast(Past):
    """Earlier tokens of the same rows, of which one layer of a cache holds what is needed."""

    def __init__(self, cache: Cache, layer_idx: int) -> None:
        self.cache = cache
        self.layer_idx = layer_idx

    def convolution_state(self, x: Tensor, context: int) -> Tensor | None:
        """As the last call of ``keep_convolution_state`` left it; None before the first."""
        state = self.cache.get_conv_state(self.layer_idx)
        return None if state is None else state.transpose(1, 2)

    def keep_convolution_state(self, x: Tensor, context: int) -> None:
        """Advances the cache."""
        self.cache.update_conv_state(x.transpose(1, 2), self.layer_idx, conv_kernel_size=context)

    def initial_state(self, hand_over: HandOver) -> InitialState | None:
        """As the last call of ``keep_state`` left it; None before the first."""
        return self.cache.get_recurrent_state(self.layer_idx)

    def keep_state(self, state: Tensor) -> None:
        """Advances the cache."""
        self.cache.update_recurrent_state(state, self.layer_idx)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Advances the cache; returns all that it holds: [B, G, past + L, D]."""
        return self.cache.update(k, v, self.layer_idx)


class ShardedPast(Past):
    """Earlier tokens of the same row on other ranks; keys and values are the attention's own matter."""

    def __init__(self, shard: SequenceShard) -> None:
        self.shard = shard

    def convolution_state(self, x: Tensor, context: int) -> Tensor | None:
        """From the rank before."""
        return inputs_before(x, context, self.shard)

    def initial_state(self, hand_over: HandOver) -> InitialState | None:
        """From all ranks before, once each has scanned its own tokens."""
        return partial(hand_over, self.shard)


def past_of(cache: Cache | None, shard: SequenceShard | None, layer_idx: int) -> Past:
    """The past of one layer's tokens; cache and shard exclude each other."""
    if shard is not None:
        return ShardedPast(shard)
    return Past() if cache is None else CachedPast(cache, layer_idx)
