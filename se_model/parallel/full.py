"""Full attention with the row's keys spread over ranks: every rank gathers all keys and values.

(P - 1) times its own go out and come in, and back in the backward. That is what it costs, and what
span-expanded attention avoids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.baselines.full import attend_within
from se_model.parallel.exchange import gather_states
from se_model.parallel.shard import SequenceShard
from se_model.span.sdpa.part_kernels import attend_part, part_gradients

PURPOSE = "keys and values"


def full_attention(q: Tensor, k: Tensor, v: Tensor, shard: SequenceShard, *, scale: float | None) -> Tensor:
    """Own queries see all keys of their document up to themselves, on whatever rank: by all-gather of K, V.

    q: [B, H, n, D]; k: [B, G, n, D]; v: [B, G, n, Dv]. Returns [B, H, n, Dv]. Memory: the row's keys and
    values.
    """
    gathered = gather_states(torch.cat([k, v], dim=3), shard.group, PURPOSE)
    before = side_by_side(gathered[shard.first_rank : shard.group.rank])
    before = before.narrow(2, before.shape[2] - shard.tokens_before, shard.tokens_before)
    keys_before, values_before = before.split([k.shape[3], v.shape[3]], dim=3)
    lengths = [shard.local_bounds[1], q.shape[2] - shard.local_bounds[1]]
    (first_q, q), (first_k, k), (first_v, v) = (x.split(lengths, dim=2) for x in (q, k, v))
    output = attend_behind(first_q, first_k, first_v, keys_before, values_before, scale)
    if not lengths[1]:
        return output
    bounds = tuple(bound - lengths[0] for bound in shard.local_bounds[1:])
    return torch.cat([output, attend_within(q, k, v, bounds, scale)], dim=2)


def side_by_side(gathered: Tensor) -> Tensor:
    """The tokens of R ranks in a row. gathered: [R, B, G, n, any] -> [B, G, R * n, any]."""
    return gathered.permute(1, 2, 0, 3, 4).flatten(2, 3)


def attend_behind(
    q: Tensor, k: Tensor, v: Tensor, keys_before: Tensor, values_before: Tensor, scale: float | None
) -> Tensor:
    """Causal attention of tokens that also see all of what lies before them; no mask is made.

    q: [B, H, n, D]; k: [B, G, n, D]; v: [B, G, n, Dv]; keys_before, values_before: [B, G, any, D] and
    [B, G, any, Dv], none too: what the backward waits for is in the graph all the same. Returns
    [B, H, n, Dv].
    """
    given = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, keys_before, values_before))
    output: Tensor = _AttendBehind.apply(*given, q.shape[-1] ** -0.5 if scale is None else scale)
    return output


class _AttendBehind(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, keys_before: Tensor, values_before: Tensor, scale: float
    ) -> Tensor:
        out, normaliser = attend_part(q, k, v, causal=True, scale=scale)
        if keys_before.shape[2]:
            far, far_normaliser = attend_part(q, keys_before, values_before, causal=False, scale=scale)
            weight = (far_normaliser - normaliser).sigmoid().unsqueeze(-1)
            out = torch.lerp(out.to(weight.dtype), far.to(weight.dtype), weight).to(q.dtype)
            normaliser = torch.logaddexp(normaliser, far_normaliser)
        ctx.save_for_backward(q, k, v, keys_before, values_before, out, normaliser)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, keys_before, values_before, out, normaliser = ctx.saved_tensors
        whole = (out, normaliser)
        for_q, for_k, for_v = part_gradients(grad, q, k, v, *whole, causal=True, scale=ctx.scale)
        if not keys_before.shape[2]:
            return for_q, for_k, for_v, keys_before, values_before, None
        far_q, *far = part_gradients(
            grad, q, keys_before, values_before, *whole, causal=False, scale=ctx.scale
        )
        for_q = (for_q.to(normaliser.dtype) + far_q.to(normaliser.dtype)).to(q.dtype)
        return for_q, for_k, for_v, *far, None
