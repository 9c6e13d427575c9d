"""Span-expanded attention over a row that lies on several ranks.

A rank needs from the others: the head of its first chunk, from its left neighbour; the block summaries and
the sums of queries, from all; and the blocks that its choices name, from their owners. Its own chunks are
attended while those blocks travel; both are merged by their log-sum-exp. What a rank receives does not grow
with the number of ranks, but for the summaries, 1 / S of the row's queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_model.parallel.fetch import Fetch, fetch_blocks, give_blocks_back
from se_model.parallel.group import ContextParallelGroup
from se_model.parallel.select import choose_in_parallel
from se_model.parallel.shard import SequenceShard
from se_model.parallel.span_plan import RankPlan, plan_ranks
from se_model.span.config import SpanConfig
from se_model.span.documents import check_inputs
from se_model.span.layout import Layout, Run, cut
from se_model.span.options import SpanOptions
from se_model.span.protocol import AttentionConfig
from se_model.span.sdpa.merge import add_part_gradients, merge_part
from se_model.span.sdpa.parts import ChunkPart, RetrievedPart, cut_into_parts
from se_model.span.sdpa.stretches import Stretches
from se_model.span.strides import with_dense_rows


def span_attention(
    config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, shard: SequenceShard, *, layer: int, step: int,
    scale: float | None,
) -> Tensor:  # fmt: skip
    """``se_attention`` of the whole row, for the shard's tokens; every rank of the group calls it.

    q: [B, H, n, D]; k: [B, G, n, D]; v: [B, G, n, Dv], rotated by their positions in the row. Returns
    [B, H, n, Dv].
    ``config.backend`` does not matter: parts are computed by torch's kernels and merged.

    Raises:
        ValueError: on inputs that do not fit together, or a shard that is no whole number of chunks.
    """
    assert isinstance(config, SpanConfig)
    check_inputs(q, k, v)
    options = config.options(layer=layer, step=step, scale=scale)
    options.check_widths(q.shape[3], v.shape[3])
    layout = cut(options.chunk_size, options.block_size, options.queries_per_choice, shard.bounds)
    call = _Call(shard.group, layout, plan_ranks(layout, shard.group.size), options)
    out: Tensor = _ParallelSpanAttention.apply(q, k, v, call)
    return out


@dataclass(frozen=True)
class _Call:
    group: ContextParallelGroup
    layout: Layout
    plans: tuple[RankPlan, ...]
    options: SpanOptions

    @property
    def plan(self) -> RankPlan:
        return self.plans[self.group.rank]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many blocks each choice of the rank's own layout retrieves; none where it has no query."""
        plan, retrieved = self.plan, self.layout.counts(self.options.top_k)
        return tuple(
            retrieved[choice] if choice in plan.choices else 0
            for choice in range(plan.first_choice, plan.first_choice + plan.own.choices)
        )


class _ParallelSpanAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: _Call) -> Tensor:
        plan = call.plan
        q, k, v = (with_dense_rows(x) for x in (q, k, v))
        q, k, v, block_head = _with_head(q, k, v, call)
        blocks = choose_in_parallel(q, block_head, k, v, call.group, call.layout, call.plans, call.options)
        fetch = fetch_blocks(blocks, k, v, call.group, call.plans)
        dtype = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros(*q.shape[:3], v.shape[3], dtype=dtype, device=q.device)
        normaliser = torch.zeros(q.shape[:3], dtype=dtype, device=q.device)
        own, retrieved = _parts(q, call, fetch)
        scale = call.options.scale_for(q.shape[3])
        for part in own:
            merge_part(part, q, k, v, blocks, out, normaliser, scale)
        keys, values = fetch.wait()
        for fetched in retrieved:
            merge_part(fetched, q, keys, values, blocks, out, normaliser, scale)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, keys, values, blocks, out, normaliser)
        ctx.call, ctx.fetch = call, fetch.without_results()
        return out[:, :, plan.head :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, keys, values, blocks, out, normaliser = ctx.saved_tensors
        call, fetch = ctx.call, ctx.fetch
        plan, dtype = call.plan, normaliser.dtype
        # The head's queries are the neighbour's: nothing flows back through them from here.
        grad = torch.nn.functional.pad(grad, (0, 0, plan.head, 0))
        for_q, for_k, for_v = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
        for_keys, for_values = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (keys, values))
        own, retrieved = _parts(q, call, fetch)
        given = (blocks, out, normaliser, call.options.scale_for(q.shape[3]))
        for part in own:
            add_part_gradients(part, grad, q, k, v, *given, (for_q, for_k, for_v))
        for fetched in retrieved:
            add_part_gradients(fetched, grad, q, keys, values, *given, (for_q, for_keys, for_values))
        give_blocks_back(fetch, for_keys, for_values, for_k, for_v, call.group, plan)
        for_k, for_v = _return_head(for_k, for_v, call)
        return for_q[:, :, plan.head :].to(q.dtype), for_k.to(k.dtype), for_v.to(v.dtype), None


def _with_head(q: Tensor, k: Tensor, v: Tensor, call: _Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values of head and shard, the shard's queries behind zeros, and the first block's own head.

    k: [B, G, head + n, D]; v: [B, G, head + n, Dv]; q: [B, H, head + n, D]; last: the neighbour's queries
    [B, H, block_head, D], or none of them for summaries that are made of keys alone.
    """
    plan, group = call.plan, call.group
    following = call.plans[group.rank + 1] if group.rank + 1 < group.size else None
    sent = torch.cat([_last(x, 0 if following is None else following.head).flatten() for x in (k, v)])
    summarised = call.options.summary == "attention"
    sent_queries = following.block_head if following is not None and summarised else 0
    queries = _last(q, sent_queries).flatten()
    shapes = [(*x.shape[:2], plan.head, x.shape[3]) for x in (k, v)]
    query_shape = (*q.shape[:2], plan.block_head if summarised else 0, q.shape[3])
    sizes = [torch.Size(shape).numel() for shape in (*shapes, query_shape)]
    received = group.shift_right(torch.cat([sent, queries]), (sum(sizes),), purpose="chunk heads")
    if received is None:
        return q, k, v, queries.new_empty(query_shape)
    key_head, value_head, query_head = (
        part.view(shape) for part, shape in zip(received.split(sizes), (*shapes, query_shape), strict=True)
    )
    k, v = torch.cat([key_head, k], dim=2), torch.cat([value_head, v], dim=2)
    return torch.nn.functional.pad(q, (0, 0, plan.head, 0)), k, v, query_head


def _return_head(for_k: Tensor, for_v: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """Gives the head's gradients to the neighbour; adds what comes back for the own last tokens.

    for_k, for_v: [B, G, head + n, D] -> [B, G, n, D].
    """
    plan, group = call.plan, call.group
    following = call.plans[group.rank + 1] if group.rank + 1 < group.size else None
    sent = torch.cat([x[:, :, : plan.head].flatten() for x in (for_k, for_v)])
    own = [x[:, :, plan.head :].contiguous() for x in (for_k, for_v)]
    shapes = [(*x.shape[:2], 0 if following is None else following.head, x.shape[3]) for x in own]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    received = group.shift_left(sent, (sum(sizes),), purpose="chunk heads", direction="backward")
    if received is not None:
        for total, part, shape in zip(own, received.split(sizes), shapes, strict=True):
            _last(total, shape[2]).add_(part.view(shape))
    return own[0], own[1]


def _last(x: Tensor, tokens: int) -> Tensor:
    return x[:, :, x.shape[2] - tokens :]


@dataclass(frozen=True)
class _FetchedPart:
    """Queries and the memory blocks that their choices name, taken from what was fetched.

    Attributes:
        rows: where each choice of the own layout finds its blocks: int64 [B, G, choices, K].
    """

    queries: Stretches
    run: Run
    rows: Tensor
    causal: bool = False

    def gather(self, x: Tensor, blocks: Tensor) -> Tensor:
        """The retrieved keys or values of x [fetched, S, D]: [N, G, retrieved * S, D]."""
        return x[self._places()].transpose(1, 2).flatten(3, 4).flatten(0, 1)

    def add_gradient(self, total: Tensor, gradient: Tensor, blocks: Tensor) -> None:
        """Adds ``gradient``, of what ``gather`` returned, to total [fetched, S, D].

        By ``index_put_``, which adds in a fixed order on a CPU and, sorting, on CUDA.
        """
        places = self._places()
        gradient = gradient.unflatten(0, (-1, self.run.pieces)).unflatten(3, (self.run.retrieved, -1))
        total.index_put_((places,), gradient.transpose(1, 2).to(total.dtype), accumulate=True)

    def _places(self) -> Tensor:
        return self.rows[self.queries.rows, :, self.run.choices, : self.run.retrieved]


def _parts(q: Tensor, call: _Call, fetch: Fetch) -> tuple[list[ChunkPart], list[_FetchedPart]]:
    own: list[ChunkPart] = []
    retrieved: list[_FetchedPart] = []
    for part in cut_into_parts(q, call.plan.own, call.counts):
        if isinstance(part, RetrievedPart):
            retrieved.append(_FetchedPart(part.queries, part.run, fetch.rows))
        else:
            own.append(part)
    return own, retrieved
