"""What the layers of a model exchange where its rows lie on several ranks, said by the layers themselves.

An attention layer exchanges what its attention does. Whatever else a layer exchanges it says in a method
`exchanged`; a layer that has none exchanges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from se_model.attach.layers import attention_layers, refuse_left_layers
from se_model.attach.marks import MARK, LayerMark
from se_model.attentions import AttentionConfig
from se_model.baselines import FullConfig
from se_model.loss import unwrap
from se_model.parallel.formula import Heads, Share, Volume
from se_model.parallel.volumes import Exchanged, attention_exchange


@runtime_checkable
class Exchanging(Protocol):
    """A layer that exchanges more than its attention does."""

    def exchanged(self, share: Share) -> Exchanged:
        """What a rank receives for this layer, by purpose, while it holds `share`."""
        ...


@dataclass(frozen=True)
class LayerExchange:
    """What one rank receives, at most, in one forward pass of one layer and in its backward pass.

    Attributes:
        layer: its name in the transformers model.
        purpose: one of `se_model.parallel.volumes.PURPOSES`.
        volume: bytes.
    """

    layer: str
    purpose: str
    volume: Volume


def layer_exchanges(model: nn.Module, share: Share) -> Iterator[LayerExchange]:
    """Every layer that exchanges anything, in the model's order.

    `model` is a transformers causal language model or a `PeftModel` around one, with the attention attached
    that it is to have (full attention where nothing is); its weights may lie on the meta device.

    Raises:
        ValueError: for an attention that cannot run with its row over several ranks, and for layers that
            `attach` leaves as they are.
    """
    refuse_left_layers(model)
    attending = {name for name, _ in attention_layers(model)}
    for name, layer in unwrap(model).named_modules():
        exchanged: Exchanged = {}
        if name in attending:
            exchanged |= attention_exchange(_attention_of(layer), _heads_of(layer), share)
        if isinstance(layer, Exchanging):
            exchanged |= layer.exchanged(share)
        for purpose, volume in exchanged.items():
            yield LayerExchange(name, purpose, volume)


def _attention_of(layer: Any) -> AttentionConfig:
    mark: LayerMark | None = getattr(layer, MARK, None)
    return FullConfig() if mark is None else mark.attachment.config


def _heads_of(layer: Any) -> Heads:
    config = layer.config
    query = config.num_attention_heads
    if hasattr(layer, "qk_head_dim"):
        # Latent attention: every query head has a key and a value of its own, made of what they share.
        return Heads(query, query, layer.qk_head_dim, layer.v_head_dim)
    size = getattr(config, "head_dim", None) or config.hidden_size // query
    return Heads(query, getattr(config, "num_key_value_heads", None) or query, size)
