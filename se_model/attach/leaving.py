"""Attention layers that stay as they are while others of their model are replaced.

transformers (5.23) looks a layer's attention up by the name in the layer's `config`, one object for the whole
model. A layer that stays is given a copy of that object, made before the name in it changes; so it finds the
function that it had. Masks are made by the model's own configuration, for all layers of a kind at once:
`mask.py` makes those of such layers as they were made before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

# Where such a layer keeps the configuration that it shares with its model otherwise.
_SHARED = "_expansion_span_shared_config"


def leave(layers: Iterable[Any]) -> str | None:
    """Have attention layers keep the attention that they have now, whatever their model is set to next.

    Returns the name of their implementation; None if there are no layers.
    """
    copies: dict[int, Any] = {}
    name: str | None = None
    for layer in layers:
        shared = layer.config
        if id(shared) not in copies:
            copies[id(shared)] = copy.deepcopy(shared)
        setattr(layer, _SHARED, shared)
        layer.config, name = copies[id(shared)], shared._attn_implementation
    return name


def stop_leaving(model: nn.Module) -> None:
    """Undo `leave`: the layers of `model` share its configuration again."""
    for module in model.modules():
        if hasattr(module, _SHARED):
            module.config = getattr(module, _SHARED)
            delattr(module, _SHARED)
