"""What each parameter of a hybrid model is for, read from its structure and not from names.

Names mislead here: a linear-attention layer may be called `self_attn`, a convolution `conv.conv` or
`conv_1d`, a final norm `norm_f` or `embedding_norm`. What a module does decides instead: whether it
computes attention through transformers' interface, whether it is a `Conv1d`, whether it holds a recurrence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from torch import nn
from transformers import PreTrainedModel

from se_model.attach import attention_layers
from se_model.hylora.config import Variant
from se_model.loss import unwrap
from se_model.recurrence.decoders import recurrent_layers


class Kind(StrEnum):
    """What a parameter is for."""

    ATTENTION = "attention projections"
    EMBEDDINGS = "embeddings"
    NORMS = "norms"
    CONVOLUTIONS = "1-D convolutions"
    STATE_SPACE = "state-space layers"
    FEED_FORWARD = "feed-forward"
    HEAD = "output head"
    OTHER = "other"


# Kinds that train in full, beside low-rank updates of the attention projections (paper section 3.4).
TRAINED_IN_FULL: dict[Variant, tuple[Kind, ...]] = {
    "lora": (),
    "lora+": (Kind.EMBEDDINGS, Kind.NORMS),
    "hylora": (Kind.EMBEDDINGS, Kind.NORMS, Kind.CONVOLUTIONS),
}


@dataclass(frozen=True)
class Part:
    """A module that holds parameters of its own.

    Attributes:
        name: the name it has in the bare model; for what an adapter adds, the name of what it adds to.
        added: whether an adapter added it: a low-rank matrix, or the trained copy of a frozen module.
    """

    name: str
    module: nn.Module
    kind: Kind
    added: bool


_ADDED = re.compile(r"\.(modules_to_save|lora_A|lora_B)\.[^.]+$")
_ORIGINAL = re.compile(r"\.(base_layer|original_module)$")


def _bare_name(name: str) -> str:
    return _ORIGINAL.sub("", _ADDED.sub("", name))


def parts(model: nn.Module) -> Iterator[Part]:
    """Every module with parameters of its own, and its kind.

    `model` is a transformers causal language model, or a `PeftModel` around one.
    """
    causal_lm = unwrap(model)
    classify = _Classifier(causal_lm)
    for full_name, module in causal_lm.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            name = _bare_name(full_name)
            yield Part(name, module, classify(name, module), added=_ADDED.search(full_name) is not None)


class _Classifier:
    def __init__(self, causal_lm: PreTrainedModel) -> None:
        self.attention = {name for name, _ in attention_layers(causal_lm)}
        # A convolution is a child of its layer; a recurrence's parameters lie on the layer itself.
        self.recurrent = {
            _bare_name(name).rpartition(".")[0]
            if isinstance(causal_lm.get_submodule(name), nn.Conv1d)
            else name
            for name in recurrent_layers(causal_lm)
        }
        self.head = {
            _bare_name(name)
            for name, module in causal_lm.named_modules()
            if module is causal_lm.get_output_embeddings()
        }

    def __call__(self, name: str, module: nn.Module) -> Kind:
        if name in self.head:
            return Kind.HEAD
        if isinstance(module, nn.Embedding):
            return Kind.EMBEDDINGS
        if isinstance(module, nn.Conv1d):
            return Kind.CONVOLUTIONS
        own = list(module.parameters(recurse=False))
        if "norm" in type(module).__name__.lower() and all(p.ndim == 1 for p in own):
            return Kind.NORMS
        layers = _prefixes(name)
        if layers & self.attention:
            return Kind.ATTENTION if isinstance(module, nn.Linear) else Kind.OTHER
        if layers & self.recurrent:
            return Kind.STATE_SPACE
        if any(p.ndim > 1 for p in own):
            return Kind.FEED_FORWARD
        return Kind.OTHER


def _prefixes(name: str) -> set[str]:
    pieces = name.split(".")
    return {".".join(pieces[:n]) for n in range(1, len(pieces) + 1)}
