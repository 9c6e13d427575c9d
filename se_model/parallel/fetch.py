"""Moving chosen memory blocks from their owners to the ranks that chose them, and their gradients back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from se_model.parallel.group import ContextParallelGroup
from se_model.parallel.span_plan import RankPlan, owner_bounds


@dataclass(frozen=True)
class Fetch:
    """Blocks on their way: who asked for what.

    Attributes:
        rows: which fetched block each choice's slot is: int64 as the choices, 0 for none.
        asked: how many blocks of each rank this rank asked for, which come in rank order.
        wanted: how many blocks each rank asked of this one.
        given: those blocks, as places (batch, head, first token in head and shard): int64 [sum(wanted), 3].
        wait: returns the fetched keys and values, [sum(asked), S, D] and [sum(asked), S, Dv].
    """

    rows: Tensor
    asked: list[int]
    wanted: list[int]
    given: Tensor
    wait: Callable[[], tuple[Tensor, Tensor]]

    def without_results(self) -> Fetch:
        """The same, to be kept for the backward pass."""
        return replace(self, wait=_nothing)


def fetch_blocks(
    blocks: Tensor, k: Tensor, v: Tensor, group: ContextParallelGroup, plans: tuple[RankPlan, ...]
) -> Fetch:
    """Asks the owners for the chosen blocks, each once, and starts their transfer.

    blocks: int64 [B, G, choices, K], ids over the whole row, -1 for none; k: [B, G, head + n, D]; v: [B, G,
    head + n, Dv].
    """
    plan = plans[group.rank]
    total = plans[-1].blocks.stop
    heads = torch.arange(blocks.shape[0] * blocks.shape[1], device=blocks.device)
    numbered = blocks + heads.view(*blocks.shape[:2], 1, 1) * total
    chosen, slots = numbered[blocks >= 0].unique(return_inverse=True)
    bounds = torch.tensor(owner_bounds(plans), dtype=torch.int64, device=blocks.device)
    owners = torch.bucketize(chosen % total, bounds, right=True)
    order = owners.argsort(stable=True)
    rows = torch.zeros_like(blocks)
    rows[blocks >= 0] = order.argsort()[slots]
    asked = torch.bincount(owners, minlength=group.size)

    wanted = torch.stack(
        group.all_to_all(
            list(asked.view(-1, 1).unbind()), [(1,)] * group.size, purpose="requests"
        )
    ).view(-1).tolist()  # fmt: skip
    asked_of = asked.tolist()
    requests = torch.cat(
        group.all_to_all(
            list(chosen[order].split(asked_of)), [(count,) for count in wanted], purpose="requests"
        )
    )
    given = _places(requests, blocks.shape[1], total, plan)
    size = plan.own.block_size
    widths = [x.shape[3] for x in (k, v)]
    sent = torch.cat([_take(x, given, size) for x in (k, v)], dim=2)  # [wanted, S, D + Dv]
    handle = group.all_to_all(
        list(sent.split(wanted)),
        [(count, size, sum(widths)) for count in asked_of],
        purpose="blocks",
        async_op=True,
    )

    def wait() -> tuple[Tensor, Tensor]:
        keys, values = torch.cat(handle.wait()).split(widths, dim=2)
        return keys, values

    return Fetch(rows, asked_of, wanted, given, wait)


def give_blocks_back(
    fetch: Fetch, for_keys: Tensor, for_values: Tensor, for_k: Tensor, for_v: Tensor,
    group: ContextParallelGroup, plan: RankPlan,
) -> None:  # fmt: skip
    """Returns the gradients of fetched blocks to their owners, which add them up in the order of the ranks.

    for_keys: [sum(asked), S, D]; for_values: [sum(asked), S, Dv]; for_k: [B, G, head + n, D], for_v: [B, G,
    head + n, Dv], both added to.
    """
    size, widths = for_keys.shape[1], [x.shape[2] for x in (for_keys, for_values)]
    returned = group.all_to_all(
        list(torch.cat([for_keys, for_values], dim=2).split(fetch.asked)),
        [(count, size, sum(widths)) for count in fetch.wanted],
        purpose="blocks",
        direction="backward",
    )
    batch, head, tokens = _rows_of(fetch.given, size)
    for total, part in zip((for_k, for_v), torch.cat(returned).split(widths, dim=2), strict=True):
        total.index_put_((batch, head, tokens), part, accumulate=True)


def _places(requests: Tensor, groups: int, total: int, plan: RankPlan) -> Tensor:
    """(batch, head, first token in head and shard) of requested blocks: int64 [requests, 3]."""
    starts = torch.tensor(plan.own.block_starts, device=requests.device)
    block = requests % total - plan.blocks.start + plan.first_own_block
    row = requests // total
    return torch.stack([row // groups, row % groups, starts[block]], dim=1)


def _take(x: Tensor, places: Tensor, size: int) -> Tensor:
    """The blocks of x [B, G, tokens, D] at ``places``: [places, S, D]."""
    return x[_rows_of(places, size)]


def _rows_of(places: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, head, start = places.unbind(1)
    return batch[:, None], head[:, None], start[:, None] + torch.arange(size, device=places.device)


def _nothing() -> tuple[Tensor, Tensor]:
    raise RuntimeError("what was fetched has been taken already")
