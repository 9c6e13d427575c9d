"""The configuration of span-expanded attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, asdict, dataclass
from functools import partial
from typing import ClassVar

from se_model.span.backends import find_backend
from se_model.span.operator import se_attention
from se_model.span.options import SpanOptions
from se_model.span.protocol import Attention
from se_model.span.rules import Queries, rule_of
from se_model.span.schedule import as_chunk_sizes, draw_chunk_size

DECODINGS = ("full", "span")


@dataclass(frozen=True)
class SpanConfig:
    """Span-expanded attention. Sizes are by default the paper's for Mamba-2-Hybrid 2.7B (section 4.1).

    Attributes:
        chunk_sizes: tokens per chunk (M). If there are several, each layer draws one in each forward call.
        block_size: tokens per memory block (S); divides every chunk size.
        top_k: memory blocks that a chunk retrieves (k); 0 is attention inside each chunk.
        summary: what represents a block: "attention" (the paper's: the mean of the block's attention over
            itself), "mean_key" (the mean of its keys), "key_bounds" (in each channel the least and the
            largest of its keys, by which no query's logit with any of them is underrated) or
            "representative_keys" (the four farthest from the block's mean key, of which a query takes the
            largest logit).
        relevancy: what a block's comparisons with several queries come to: "sum" (the paper's) or "max"; or,
            where each query first shares one out among the candidate blocks, by a softmax, the sum of its
            shares, "mass", or the largest, "peak".
        queries: which queries of a chunk judge: "all" (the paper's), {"representative": r}, the r farthest
            from the chunk's mean query, or {"stride": n}, every n-th.
        rule: "paper" for the paper's three words together; by default each word has a default of its own,
            that of `se_model.span.rules.DEFAULT`.
        selection: "chunk" (the paper's: a chunk's queries choose together) or "causal" (each ``refresh``
            queries retrieve what the ``refresh`` queries before them choose, so that no token sees a choice
            made by a later one).
        refresh: queries that share a choice under "causal" selection; divides every chunk size; by default
            the block size.
        decoding: the attention of new tokens that continue a cache: "full" (the paper's: to all cached
            tokens) or "span" (as in a forward call over the whole row; needs "causal" selection).
        backend: a name in ``se_model.span.backends.BACKENDS``, or "auto".
        seed: for drawing chunk sizes.

    Raises:
        ValueError: if the options do not fit together.
    """

    kind: ClassVar[str] = "span"

    chunk_sizes: int | Sequence[int] = (2048, 4096)
    block_size: int = 32
    top_k: int = 8
    summary: str | None = None
    relevancy: str | None = None
    queries: Queries | None = None
    selection: str = "chunk"
    refresh: int | None = None
    decoding: str = "full"
    backend: str = "auto"
    seed: int = 0
    rule: InitVar[str | None] = None

    def __post_init__(self, rule: str | None) -> None:
        chosen = rule_of(rule, self.summary, self.relevancy, self.queries)
        for word in ("summary", "relevancy", "queries"):
            object.__setattr__(self, word, getattr(chosen, word))
        object.__setattr__(self, "chunk_sizes", as_chunk_sizes(self.chunk_sizes))
        for size in as_chunk_sizes(self.chunk_sizes):
            self.options_of(size)
        if self.decoding not in DECODINGS:
            raise ValueError(f"decoding must be one of {', '.join(DECODINGS)}; not {self.decoding!r}")
        if self.decoding == "span" and self.selection != "causal":
            raise ValueError('decoding="span" needs selection="causal": "chunk" chooses by later queries too')
        if self.backend != "auto":
            find_backend(self.backend)

    @property
    def draws(self) -> bool:
        """Whether there are several chunk sizes to draw from."""
        return len(as_chunk_sizes(self.chunk_sizes)) > 1

    def chunk_size(self, *, layer: int, step: int) -> int:
        """The chunk size that a layer uses in a forward call."""
        return draw_chunk_size(as_chunk_sizes(self.chunk_sizes), seed=self.seed, step=step, layer=layer)

    def options(self, *, layer: int, step: int, scale: float | None = None) -> SpanOptions:
        """The options of one layer in one forward call, its chunk size drawn; ``scale`` is of the logits."""
        return self.options_of(self.chunk_size(layer=layer, step=step), scale)

    def options_of(self, chunk_size: int, scale: float | None = None) -> SpanOptions:
        """The options with chunks of that size; ``scale`` is of the logits."""
        rule = rule_of(None, self.summary, self.relevancy, self.queries)
        return SpanOptions(
            chunk_size,
            self.block_size,
            self.top_k,
            rule.summary,
            self.selection,
            self.refresh,
            scale,
            rule.relevancy,
            rule.queries,
        )

    def bind(self, *, layer: int, step: int) -> Attention:
        """The attention of one layer in one forward call, its chunk size drawn."""
        options = asdict(self.options(layer=layer, step=step))
        return partial(se_attention, **options, backend=self.backend)
