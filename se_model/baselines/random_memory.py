"""Attention inside chunks, expanded by past blocks taken at random: the paper's "Random"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from se_model.span.documents import Documents, check_inputs, document_bounds
from se_model.span.layout import Layout, cut
from se_model.span.operator import se_attention
from se_model.span.options import SpanOptions
from se_model.span.protocol import Attention
from se_model.span.schedule import as_chunk_sizes, counter_hash, draw_chunk_size
from se_model.span.selection.ranking import rank_blocks


def random_memory_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_size: int,
    block_size: int = 32,
    top_k: int = 8,
    random_key: int = 0,
    scale: float | None = None,
    cu_seqlens: Documents | None = None,
    backend: str = "auto",
) -> Tensor:
    """Span-expanded attention whose ``top_k`` past blocks are drawn without regard to the input.

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv], G divides H; cu_seqlens: [N + 1] with B = 1. Returns
    [B, H, L, Dv].
    Each chunk and key/value head draws anew. The same ``random_key`` and shapes give the same blocks.

    Raises:
        ValueError: as ``se_attention``.
    """
    SpanOptions(chunk_size, block_size, top_k)
    check_inputs(q, k, v)
    layout = cut(chunk_size, block_size, chunk_size, document_bounds(cu_seqlens, q.shape[2], q.shape[0]))
    blocks = draw_blocks(k.shape[0], k.shape[1], layout, top_k, random_key).to(q.device)
    return se_attention(
        q,
        k,
        v,
        chunk_size=chunk_size,
        block_size=block_size,
        top_k=top_k,
        scale=scale,
        cu_seqlens=cu_seqlens,
        backend=backend,
        blocks=blocks,
    )


def draw_blocks(batch: int, heads: int, layout: Layout, top_k: int, random_key: int) -> Tensor:
    """For every chunk and head ``top_k`` of the candidate blocks, or all, each set equally likely.

    Returns int64 [batch, heads, T, top_k], ascending, -1 where there is none.
    """
    generator = torch.Generator().manual_seed(random_key)
    drawn = []
    for document in layout.documents:
        choices = layout.choices_of(document)
        # Ranking random relevancies is drawing without replacement.
        shape = (batch, heads, choices, layout.candidates(choices - 1))
        relevancy = torch.rand(shape, generator=generator, dtype=torch.float64)
        drawn.append(rank_blocks(relevancy, document, layout, top_k, first=0))
    return torch.cat(drawn, dim=2)


@dataclass(frozen=True)
class RandomConfig:
    """Random past blocks instead of relevant ones; the rest as in ``SpanConfig``.

    Raises:
        ValueError: if the numbers do not fit together.
    """

    kind: ClassVar[str] = "random"
    draws: ClassVar[bool] = True

    chunk_sizes: int | Sequence[int] = (2048, 4096)
    block_size: int = 32
    top_k: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunk_sizes", as_chunk_sizes(self.chunk_sizes))
        for size in as_chunk_sizes(self.chunk_sizes):
            SpanOptions(size, self.block_size, self.top_k)

    def bind(self, *, layer: int, step: int) -> Attention:
        """The attention of one layer in one forward call, its chunk size and its blocks drawn."""
        sizes = as_chunk_sizes(self.chunk_sizes)
        return partial(
            random_memory_attention,
            chunk_size=draw_chunk_size(sizes, seed=self.seed, step=step, layer=layer),
            block_size=self.block_size,
            top_k=self.top_k,
            random_key=counter_hash(self.seed, step, layer) % 2**63,
        )
