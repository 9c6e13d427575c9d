"""What `attach` writes on a model and its layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from se_model.attentions import AttentionConfig
from se_model.span.decoding import DecodingState

MARK = "_expansion_span"


@dataclass(frozen=True)
class DecodedRun:
    """Where one run of a batch begins (of `rows`, at token `start`), and its state after the last forward."""

    rows: slice
    start: int
    state: DecodingState


@dataclass
class Attachment:
    """What one model is attached to; shared by its layers.

    `decoding` holds, for `SpanConfig(decoding="span")` alone, what each layer (by its ordinal) needs to go on
    where its last forward in evaluation mode without gradients stopped: one state, which the next prefill
    replaces, and `attach` and `detach` drop.

    `step` is how many forward calls training has made, `running` the number of the one that runs, or ran last
    (see `draws.py`).
    """

    config: AttentionConfig
    previous: dict[str, Any]
    packed: bool = False  # the call that is running, or ran last
    sharded: bool = False  # likewise: its tokens are a part of a row over several ranks
    step: int = 0
    running: int = 0
    decoding: dict[int, list[DecodedRun]] = field(default_factory=dict)

    def refuse_unheard_shard(self, module: nn.Module) -> None:
        """Refuses to run a layer on its rank's tokens alone, where the model's call has a shard.

        Raises:
            ValueError: naming the layer.
        """
        if self.sharded:
            raise ValueError(
                f"{type(module).__name__} is not told that its tokens are a part of a row over several ranks"
            )


@dataclass(frozen=True)
class LayerMark:
    """Written on an attention layer: its ordinal among the attention layers of its model."""

    attachment: Attachment
    layer: int
