"""A cache that takes a token's keys and values in place; transformers' copies all that it holds for each.

Only the layers that keep every token are changed: windows move, and states have a fixed size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, cache_utils


def reserve(cache: DynamicCache, tokens: int) -> None:
    """Makes room for `tokens` tokens in every row of a cache; more of them are an error.

    One layer at a time is there twice.
    """
    for index, layer in enumerate(cache.layers):
        kind = _KINDS.get(type(layer))
        if kind is not None and getattr(layer, "keys", None) is not None:
            reserved = kind.__new__(kind)
            reserved.__dict__.update(vars(layer))
            reserved.reserve(tokens)
            cache.layers[index] = reserved


class InPlace:
    """Keys and values [B, G, n, D] that are the first n tokens of larger tensors."""

    keys: Tensor
    values: Tensor

    def reserve(self, tokens: int) -> None:
        """Makes room for so many tokens."""
        held = self.keys.shape[2]
        self._rooms = [
            each.new_empty(*each.shape[:2], tokens, each.shape[3]) for each in (self.keys, self.values)
        ]
        for room, each in zip(self._rooms, (self.keys, self.values), strict=True):
            room[:, :, :held] = each
        self._show(held)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As transformers' `DynamicLayer.update`."""
        held = self.keys.shape[2]
        end = held + key_states.shape[2]
        if len(key_states) != len(self.keys):
            raise ValueError(f"the cache has {len(self.keys)} rows, and {len(key_states)} are added to")
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room.narrow(2, held, end - held).copy_(new)
        self._show(end)
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Keeps the rows with these numbers, int64 [n], and their room."""
        tokens = self._rooms[0].shape[2]
        self.keys, self.values = (each.index_select(0, rows) for each in (self.keys, self.values))
        self.reserve(tokens)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As transformers' `DynamicLayer.reorder_cache`, for what reorders or leaves out rows by it."""
        self.keep(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """As transformers' `DynamicLayer.batch_select_indices`."""
        self.keep(indices)

    def _show(self, tokens: int) -> None:
        self.keys, self.values = (room[:, :, :tokens] for room in self._rooms)


class _InPlaceLayer(InPlace, cache_utils.DynamicLayer):
    pass


class _InPlaceLayerWithState(InPlace, cache_utils.LinearAttentionAndFullAttentionLayer):
    pass


_KINDS: dict[type, Any] = {
    cache_utils.DynamicLayer: _InPlaceLayer,
    cache_utils.LinearAttentionAndFullAttentionLayer: _InPlaceLayerWithState,
}
