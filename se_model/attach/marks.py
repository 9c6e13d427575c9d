"""What `attach` writes on a model and its layers."""

from __future__ import annotations

from contextvars import ContextVar
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


@dataclass(frozen=True)
class RunningCall:
    """What a model was told in the call that is running; a layer that was not told the same refuses to run.

    Attributes:
        number: of the forward call, from which chunk sizes and random blocks are drawn (`draws.py`).
        packed: some row holds several documents.
        sharded: the tokens are a part of a row over several ranks.
    """

    number: int
    packed: bool = False
    sharded: bool = False


@dataclass
class Attachment:
    """What one model is attached to; shared by its layers.

    `decoding` holds, for `SpanConfig(decoding="span")` alone, what each layer (by its ordinal) needs to go on
    where its last forward in evaluation mode without gradients stopped: one state, which the next prefill
    replaces, and `attach` and `detach` drop.

    `left` names the implementation of the layers that were left as they are; None where there are none.

    `step` is how many forward calls training has made. `call` is the one that is running, None between calls
    and in a backward pass: `watch_inputs` alone sets and resets it.
    """

    config: AttentionConfig
    previous: dict[str, Any]
    left: str | None = None
    step: int = 0
    call: RunningCall | None = None
    decoding: dict[int, list[DecodedRun]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The number of the call that is running; between calls, of the next one that trains."""
        return self.step if self.call is None else self.call.number

    def require_whole_rows(self, module: nn.Module) -> None:
        """Checks that a layer without a shard may run: that the model was given none either.

        Raises:
            ValueError: naming the layer, which would run on its rank's tokens alone.
        """
        if self.call is not None and self.call.sharded:
            raise ValueError(
                f"{type(module).__name__} is not told that its tokens are a part of a row over several ranks"
            )

    def require_whole_documents(self, module: nn.Module) -> None:
        """Checks that a layer without bounds of documents may run: that the model was given none either.

        Raises:
            ValueError: naming the layer, which would run from one document into the next.
        """
        if self.call is not None and self.call.packed:
            raise ValueError(
                f"{type(module).__name__} is not told where packed documents begin; give one document per row"
            )


@dataclass(frozen=True)
class LayerMark:
    """Written on an attention layer that was taken: its ordinal among those of its model."""

    attachment: Attachment
    layer: int


running: ContextVar[Attachment | None] = ContextVar("running_attachment", default=None)
"""That of the model whose call is running: a mask function is told nothing else of its model."""
