"""Which layers of a decoder are recurrent, and what the decoder can be told about its tokens.

A recurrence that is not told of packed documents runs on from one into the next; one that is not told of a
shard begins anew on each rank.
"""

from __future__ import annotations

import inspect

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# By what transformers 5.23 calls the decays of a recurrence; the last are recurrent_gemma's and MiniMax's.
_DECAYS = ("A_log", "dt_bias", "recurrent_param", "slope_rate")


def handles_packing(decoder: nn.Module) -> bool:
    """Whether the decoder itself takes `cu_seqlens` and keeps documents apart in all of its layers.

    It is given a `DocumentBounds`, which has a tensor for each device.
    """
    return _takes(decoder, "cu_seqlens")


def recurrent_layers(decoder: nn.Module) -> list[str]:
    """Names of the modules that carry something from token to token other than by attention.

    These are the convolutions, and whatever holds a recurrence's decays.
    """
    return [
        name
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Conv1d) or any(hasattr(module, own) for own in _DECAYS)
    ]


def packing_refusal(decoder: nn.Module, name: str) -> str | None:
    """Why a decoder, called `name` in the message, cannot keep packed documents apart; None where it can."""
    leaking = [] if handles_packing(decoder) else _untold_layers(decoder, "cu_seqlens")
    if not leaking:
        return None
    return f"{name} would carry state across packed documents in {len(leaking)} modules (first: {leaking[0]})"


def refuse_without_shards(decoder: nn.Module) -> None:
    """Refuses a decoder with a layer that would see its own rank's tokens only.

    Raises:
        ValueError: naming the layers.
    """
    if _takes(decoder, "shard"):
        return
    if staying := _untold_layers(decoder, "shard"):
        raise ValueError(
            f"{type(decoder).__name__} carries state from token to token in {len(staying)} modules that "
            f"cannot hand it to the next rank (context_parallel): {', '.join(staying)}"
        )
    # Only what `attach` registers takes a shard; transformers' own functions see the rank's tokens alone.
    name = _attention_of(decoder)
    if not _takes_shards(name):
        raise ValueError(
            f"the attention of {type(decoder).__name__} ({name!r}) sees its own rank's tokens only "
            "(context_parallel): attach one that sees beyond, FullConfig() for full attention"
        )
    left = [
        layer
        for layer, module in decoder.named_modules()
        if (own := _attention_of(module, name)) != name and not _takes_shards(own)
    ]
    if left:
        raise ValueError(
            f"{type(decoder).__name__} has {len(left)} layers that keep an attention of their own, which "
            f"sees its own rank's tokens only (context_parallel): {', '.join(left)}"
        )


def _attention_of(module: nn.Module, default: str | None = None) -> str | None:
    """The implementation of attention that a module's configuration names, if it has one."""
    return getattr(getattr(module, "config", None), "_attn_implementation", default)


def _takes_shards(implementation: str | None) -> bool:
    attention = ALL_ATTENTION_FUNCTIONS.get(implementation)
    return attention is not None and "shard" in inspect.signature(attention).parameters


def _untold_layers(decoder: nn.Module, argument: str) -> list[str]:
    """The recurrent layers that do not take the argument, and lie in no module that takes it for them."""

    def is_told(name: str) -> bool:
        parts = name.split(".")
        around = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        return any(_takes(decoder.get_submodule(each), argument) for each in around)

    return [name for name in recurrent_layers(decoder) if not is_told(name)]


def _takes(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(type(module).forward).parameters
