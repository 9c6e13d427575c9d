"""The sdpa backend off the CPU, where a chunk's queries choose together: causal calls, retrieved keys first.

Keys are [retrieved ; own chunk], as in the paper (section 3.2). A chunk's queries are preceded by as many
zero queries as there are retrieved tokens, so that the plain causal mask, which every fused kernel has, lets
the real ones see all that was retrieved and their own chunk causally; the zero queries' outputs are dropped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.sdpa.retrieval import retrieve, unbatch_pieces
from se_model.span.widths import dense_attention


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: tuple[int, ...],
    layout: Layout,
    options: SpanOptions,
) -> Tensor:
    """Each chunk's attention over itself and the blocks its choice names (paper, section 3.2).

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv]; blocks: int64 [B, G, T, K], of which choice i uses
    the first ``counts[i]``; one choice for each chunk. Returns [B, H, L, Dv].
    """
    scale = options.scale_for(q.shape[3])
    runs = list(layout.choice_runs(counts))
    # One split, whose backward is a single concatenation; a slice's backward fills a whole row's gradient.
    lengths = [run.pieces * run.length for run in runs]
    outputs = []
    for run, *own in zip(runs, *(x.split(lengths, dim=2) for x in (q, k, v)), strict=True):
        queries, keys, values = (
            x.unflatten(2, (run.pieces, run.length)).transpose(1, 2).flatten(0, 1) for x in own
        )
        span = run.retrieved * layout.block_size
        if span:
            queries = F.pad(queries, (0, 0, span, 0))
            keys = torch.cat([retrieve(k, blocks, run, layout.block_size), keys], dim=2)
            values = torch.cat([retrieve(v, blocks, run, layout.block_size), values], dim=2)
        out = dense_attention(queries, keys, values, is_causal=True, scale=scale)
        outputs.append(unbatch_pieces(out[:, :, span:], run).flatten(2, 3))
    return torch.cat(outputs, dim=2)
