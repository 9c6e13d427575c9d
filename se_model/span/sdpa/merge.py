"""Adding one part to the attention of the whole: its output by their log-sum-exps, then its gradients.

Works on any device. Each of the two is one function, so that what a kernel returned is freed before the next
part is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.span.sdpa.part_kernels import attend_part, part_gradients
from se_model.span.sdpa.parts import AttentionPart


def merge_part(
    part: AttentionPart,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    out: Tensor,
    normaliser: Tensor,
    scale: float,
) -> None:
    """Merges a part's attention into ``out`` [B, H, L, Dv] and ``normaliser`` [B, H, L].

    A causal part is the first for its queries, and overwrites what they held.
    """
    queries = part.queries
    given = (queries.batch(q), part.gather(k, blocks), part.gather(v, blocks))
    one, one_normaliser = (queries.unbatch(x) for x in attend_part(*given, causal=part.causal, scale=scale))
    here, here_normaliser = queries.view(out), queries.view(normaliser)
    if part.causal:
        here.copy_(one)
        here_normaliser.copy_(one_normaliser)
    else:
        weight = (one_normaliser - here_normaliser).sigmoid_().unsqueeze(-1)
        here.lerp_(one.to(out.dtype), weight)
        torch.logaddexp(here_normaliser, one_normaliser, out=here_normaliser)


def add_part_gradients(
    part: AttentionPart,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    out: Tensor,
    normaliser: Tensor,
    scale: float,
    totals: tuple[Tensor, ...],
) -> None:
    """Adds a part's gradients to ``totals``, those of q, k and v: [B, H, L, D], [B, G, L, D], [B, G, L, Dv].

    ``out`` and ``normaliser`` are those of all parts together.
    """
    queries = part.queries
    given = (queries.batch(grad), queries.batch(q), part.gather(k, blocks), part.gather(v, blocks))
    results = (queries.batch(out), queries.batch(normaliser))
    for_q, for_k, for_v = part_gradients(*given, *results, causal=part.causal, scale=scale)
    if part.causal:
        queries.view(totals[0]).copy_(queries.unbatch(for_q))
    else:
        queries.view(totals[0]).add_(queries.unbatch(for_q))
    part.add_gradient(totals[1], for_k, blocks)
    part.add_gradient(totals[2], for_v, blocks)
