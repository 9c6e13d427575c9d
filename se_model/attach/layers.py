"""Which attention layers of a model `attach` takes, which it leaves as they are, and which it refuses.

transformers (5.23) writes what a layer asks for beyond causality on the layer's module, or reads it off the
configuration at each call.
"""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

from torch import nn

from se_model.loss import unwrap


def attention_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The modules of `model`, named and in order, that compute attention through `AttentionInterface`.

    All of them, those that `attach` leaves as they are too: see `left_layers`.
    """
    return [(name, module) for name, module in unwrap(model).named_modules() if _interface_code(module)]


def left_layers(model: nn.Module) -> dict[str, str]:
    """The attention layers of `model` that `attach` leaves as they are, by name and in order, each with why.

    These have a sliding window, which is no less the model's own than the numbers of its weights; they go on
    to compute transformers' attention, under transformers' mask. `attach` takes all others.
    """
    return {
        name: f"a sliding window of {window} tokens"
        for name, layer in attention_layers(model)
        if (window := _window(layer)) is not None
    }


def refuse_left_layers(model: nn.Module) -> None:
    """Refuses a model whose rows are to lie on several ranks if `attach` leaves layers of it as they are.

    Raises:
        ValueError: naming the layers.
    """
    left = left_layers(model)
    if left:
        layers = ", ".join(f"{name} ({reason})" for name, reason in left.items())
        raise ValueError(
            f"{type(unwrap(model)).__name__} has attention layers that attach leaves as they are, and that "
            f"see their own rank's tokens only (context_parallel): {layers}"
        )


def layers_to_take(model: nn.Module) -> list[tuple[str, Any]]:
    """The attention layers of `model` whose attention is replaced, named and in order.

    Raises:
        ValueError: if there is none, or one asks for what no attention here computes; names the layers, and
            the configuration's key where one is to blame.
    """
    layers, left, kind = attention_layers(model), left_layers(model), type(unwrap(model)).__name__
    if not layers:
        raise ValueError(
            f"no layer of {kind} looks its attention up in AttentionInterface: there is nothing to replace"
        )
    taken = [(name, layer) for name, layer in layers if name not in left]
    if not taken:
        key, window = _key(layers[0][1].config, "sliding_window"), _window(layers[0][1])
        raise ValueError(
            f"every attention layer of {kind} has a sliding window ({key}: {window} in its configuration), "
            "and attach leaves such layers as they are: there is none to take"
        )
    for name, layer in taken:
        if not getattr(layer, "is_causal", True):
            raise ValueError(f"{name} is not causal: only the self-attention of a decoder can be replaced")
    refused = [f"{name} ({reason})" for name, layer in taken if (reason := _refusal(layer)) is not None]
    if refused:
        raise ValueError(
            f"{kind} has attention layers that ask for what no attention here computes: {', '.join(refused)}"
        )
    return taken


def _window(layer: Any) -> int | None:
    if not getattr(layer, "is_sliding", True):
        return None
    if hasattr(layer, "sliding_window"):
        window: int | None = layer.sliding_window
        return window
    # Mistral and those made after it read it at each call.
    code = _interface_code(layer)
    reads = code is not None and "sliding_window" in (*code.co_consts, *code.co_names)
    return getattr(layer.config, "sliding_window", None) if reads else None


def _refusal(layer: Any) -> str | None:
    cap = getattr(layer, "attn_logit_softcapping", None)
    if cap is not None:
        return f"a soft cap of its logits, {_key(layer.config, 'attn_logit_softcapping')}: {cap}"
    if getattr(layer, "sinks", None) is not None:
        return "attention sinks, the parameter sinks"
    return None


def _key(config: Any, attribute: str) -> str:
    """What an attribute is called in a configuration's file."""
    key: str = config.attribute_map.get(attribute, attribute)
    return key


def _interface_code(module: nn.Module) -> CodeType | None:
    # transformers puts no common class or attribute on these modules; they share this name in their forward.
    code: CodeType | None = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code if code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names else None
