"""Attention inside chunks with nothing retrieved: the paper's "NoMem"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from se_model.span.operator import se_attention
from se_model.span.protocol import Attention
from se_model.span.schedule import as_chunk_sizes, draw_chunk_size


@dataclass(frozen=True)
class NoMemoryConfig:
    """Span-expanded attention without the span; chunk sizes are drawn as ``SpanConfig`` draws them.

    Raises:
        ValueError: on no chunk size, or one below 1.
    """

    kind: ClassVar[str] = "none"

    chunk_sizes: int | Sequence[int] = (2048, 4096)
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk_sizes", as_chunk_sizes(self.chunk_sizes))

    @property
    def draws(self) -> bool:
        """Whether there are several chunk sizes to draw from."""
        return len(as_chunk_sizes(self.chunk_sizes)) > 1

    def bind(self, *, layer: int, step: int) -> Attention:
        """The attention of one layer in one forward call, its chunk size drawn."""
        size = draw_chunk_size(as_chunk_sizes(self.chunk_sizes), seed=self.seed, step=step, layer=layer)
        return partial(se_attention, chunk_size=size, block_size=size, top_k=0)
