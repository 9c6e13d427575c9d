"""The sdpa backend off the CPU, where the queries of a chunk choose in groups: one masked call per group.

The n-th groups of all chunks see equally many keys of their own chunks, so they form one batch. Keys are
[retrieved ; own chunk up to the group's end].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from se_model.span.layout import Layout, Run
from se_model.span.options import SpanOptions
from se_model.span.sdpa.retrieval import gather_blocks, view_blocks
from se_model.span.widths import dense_attention


@dataclass(frozen=True)
class _Groups:
    """The queries from ``start`` to ``end`` of some chunks of a run.

    Attributes:
        run: equally long chunks.
        chunks: which of them, one after the other.
        start: first query, counted from its chunk's start.
        end: the last query's successor.
        choices: ids of the groups' choices.
        retrieved: blocks that each group retrieves.
    """

    run: Run
    chunks: slice
    start: int
    end: int
    choices: list[int]
    retrieved: int


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: tuple[int, ...],
    layout: Layout,
    options: SpanOptions,
) -> Tensor:
    """Each group's attention over its chunk, up to itself, and the blocks that its choice names.

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv]; blocks: int64 [B, G, choices, K], of which choice i
    uses the first ``counts[i]``. Returns [B, H, L, Dv].
    """
    outputs = []
    for run in layout.chunk_runs():
        # The first groups of all chunks of the run, then the second ones: [B, H, chunks, group, Dv] each.
        groups_in_order = [
            torch.cat(
                [_attend(q, k, v, blocks, groups, options) for groups in _alike(run, start, counts, layout)],
                dim=2,
            )
            for start in range(0, run.length, layout.refresh)
        ]
        outputs.append(torch.cat(groups_in_order, dim=3).flatten(2, 3))
    return torch.cat(outputs, dim=2)


def _alike(run: Run, start: int, counts: tuple[int, ...], layout: Layout) -> Iterator[_Groups]:
    """The groups that begin at ``start`` in the run's chunks, together if they retrieve equally much."""
    document = run.document
    first = document.first_choice + (run.start - document.start + start) // layout.refresh
    choices = [first + chunk * (layout.chunk_size // layout.refresh) for chunk in range(run.pieces)]
    end = min(start + layout.refresh, run.length)
    chunk = 0
    for retrieved, same in groupby(choices, key=counts.__getitem__):
        ids = list(same)
        yield _Groups(run, slice(chunk, chunk + len(ids)), start, end, ids, retrieved)
        chunk += len(ids)


def _attend(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, groups: _Groups, options: SpanOptions) -> Tensor:
    """Returns [B, H, chunks, group, Dv]."""
    run, start, end = groups.run, groups.start, groups.end
    queries, *own = (
        x[:, :, run.tokens].unflatten(2, (run.pieces, run.length))[:, :, groups.chunks, :end].transpose(1, 2)
        for x in (q, k, v)
    )
    where = blocks[:, :, groups.choices, : groups.retrieved] - run.document.first_block
    spans = (
        gather_blocks(view_blocks(x, run.document, options.block_size), where).transpose(1, 2) for x in (k, v)
    )
    keys, values = (torch.cat(both, dim=3).flatten(0, 1) for both in zip(spans, own, strict=True))
    positions = torch.arange(-groups.retrieved * options.block_size, end, device=q.device)
    out = dense_attention(
        queries[:, :, :, start:].flatten(0, 1),
        keys,
        values,
        attn_mask=positions <= torch.arange(start, end, device=q.device)[:, None],
        scale=options.scale_for(q.shape[3]),
    )
    return out.unflatten(0, (q.shape[0], -1)).transpose(1, 2)
