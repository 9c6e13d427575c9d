"""Backend for CUDA in half precision: the keys of every choice gathered, then one flash attention.

Each choice is a row of its own in one batch of unequal rows: its queries, and as keys [retrieved ; own chunk
up to the last of these queries], as in the paper (section 3.2). Its causal mask is aligned at the
bottom right, so every query sees all retrieved tokens, and its own chunk causally, without an explicit mask.

The gathered keys take 1 + k S / M rows' worth of memory under "chunk" selection. Under "causal" selection
each of a chunk's choices copies the chunk up to itself, M / (2 refresh) times the row altogether.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.span.flash_package import VarlenAttention, varlen_attention
from se_model.span.layout import Layout
from se_model.span.options import SpanOptions


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: tuple[int, ...],
    layout: Layout,
    options: SpanOptions,
    *,
    kernel: VarlenAttention = varlen_attention,
) -> Tensor:
    """Each chunk's attention over itself and the blocks its choices name (paper, section 3.2).

    q: [B, H, L, D]; k, v: [B, G, L, D]; blocks: int64 [B, G, choices, K], of which choice i uses the first
    ``counts[i]``. Returns [B, H, L, D]. ``kernel`` computes the attention of all choices at once.
    """
    batch, heads, length, width = q.shape
    rows = _rows(layout, counts, batch, q.device)
    tokens = key_tokens(blocks, rows, layout, length)
    keys, values = (_Gather.apply(x.transpose(1, 2).flatten(0, 1), tokens) for x in (k, v))
    queries = q.transpose(1, 2).reshape(batch * length, heads, width)
    out = kernel(
        queries, keys, values, rows.query_bounds, rows.key_bounds, rows.most_queries, rows.most_keys,
        options.scale_for(width),
    )  # fmt: skip
    return out.unflatten(0, (batch, length)).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Rows:
    """The choices of a batch as rows of queries and keys laid end to end.

    Attributes:
        blocks: first token of each memory block, int64 [U].
        chunks: first token of each choice's chunk, int64 [choices].
        spans: tokens that each choice retrieves, int64 [choices].
        keys: keys of each choice, the retrieved ones among them, int64 [choices].
        all_keys: their sum, for one element of the batch.
        query_bounds: int32 [B * choices + 1].
        key_bounds: int32 [B * choices + 1].
        most_queries: of any choice.
        most_keys: of any choice.
    """

    blocks: Tensor
    chunks: Tensor
    spans: Tensor
    keys: Tensor
    all_keys: int
    query_bounds: Tensor
    key_bounds: Tensor
    most_queries: int
    most_keys: int


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _rows(layout: Layout, counts: tuple[int, ...], batch: int, device: torch.device) -> Rows:
    """The rows, shared by the layers of a model, and by a forward call and its recomputation.

    Never inference-mode tensors: a later training step must be able to save what an evaluation cached.
    """
    spans = [count * layout.block_size for count in counts]
    firsts = [
        first
        for document in layout.documents
        for first in range(document.start, document.end, layout.refresh)
    ]
    lasts = [*firsts[1:], layout.bounds[-1]]
    queries = [last - first for first, last in zip(firsts, lasts, strict=True)]
    keys = [span + last - chunk for span, last, chunk in zip(spans, lasts, layout.chunk_starts, strict=True)]
    query_bounds, key_bounds = (
        torch.tensor([0, *accumulate(lengths * batch)], dtype=torch.int32, device=device)
        for lengths in (queries, keys)
    )
    return Rows(
        blocks=torch.tensor(layout.block_starts, device=device),
        chunks=torch.tensor(layout.chunk_starts, device=device),
        spans=torch.tensor(spans, device=device),
        keys=torch.tensor(keys, device=device),
        all_keys=sum(keys),
        query_bounds=query_bounds,
        key_bounds=key_bounds,
        most_queries=max(queries),
        most_keys=max(keys),
    )


def key_tokens(blocks: Tensor, rows: Rows, layout: Layout, length: int) -> Tensor:
    """Which token each gathered key is, choice after choice, for every key/value head.

    blocks: int64 [B, G, choices, K]. Returns int64 [B * all_keys, G]; tokens count over the whole batch.
    """
    device = blocks.device
    owners = torch.repeat_interleave(rows.keys, output_size=rows.all_keys)
    place = torch.arange(rows.all_keys, device=device) - (rows.keys.cumsum(0) - rows.keys)[owners]
    # Where nothing is retrieved, any block will do: ``torch.where`` takes the choice's own tokens there.
    slots = (place // layout.block_size).clamp(max=blocks.shape[-1])
    ids = F.pad(blocks.clamp(min=0), (0, 1))[:, :, owners, slots]
    retrieved = rows.blocks[ids] + place % layout.block_size
    own = rows.chunks[owners] + place - rows.spans[owners]
    tokens = torch.where(place < rows.spans[owners], retrieved, own)
    rows_before = torch.arange(blocks.shape[0], device=device)[:, None, None] * length
    return (tokens + rows_before).transpose(1, 2).flatten(0, 1)


class _Gather(torch.autograd.Function):
    """x: [tokens, G, D], where: int64 [keys, G] -> [keys, G, D], each head by indices of its own.

    The gradient of a token is summed over all that took it, in float32 or wider, by ``index_put_``, which
    sorts its indices on CUDA and so adds in one order every time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        ctx.shape = x.shape
        return x[where, torch.arange(x.shape[1], device=x.device)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        total = wide.new_zeros(ctx.shape)
        heads = torch.arange(ctx.shape[1], device=grad.device)
        return total.index_put_((where, heads), wide, accumulate=True).to(grad.dtype), None
