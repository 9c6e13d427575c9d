"""The queries that judge for choices begun in a shard, where a neighbour holds some of them.

A choice is judged by its own queries, of which the last may lie on the right neighbour, or, under "causal"
selection, by those of the choice before, of which the first may lie on the left neighbour. No further: a
choice is no longer than a chunk, and a chunk no longer than a shard.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.parallel.group import ContextParallelGroup
from se_model.parallel.span_plan import RankPlan, document_of_choice
from se_model.span.layout import Layout


def decided_choices(plan: RankPlan) -> range:
    """The choices that the rank decides: those whose first query it holds."""
    return range(plan.choices.start + int(plan.shares_first), plan.choices.stop)


def judges_elsewhere(layout: Layout, plan: RankPlan, *, causal: bool) -> int:
    """How many queries that judge for the rank's choices a neighbour holds: the left one if ``causal``."""
    decided = decided_choices(plan)
    if causal:
        document = document_of_choice(layout, decided.start)
        before = decided.start - 1 - document.first_choice
        if before < 0:
            return 0
        return max(0, plan.start - document.start - before * layout.refresh)
    document = document_of_choice(layout, decided.stop - 1)
    behind = document.start + (decided.stop - document.first_choice) * layout.refresh
    return max(0, min(behind, document.end) - plan.end)


def with_judges(
    q: Tensor, group: ContextParallelGroup, layout: Layout, plans: tuple[RankPlan, ...], *, causal: bool
) -> tuple[Tensor, int]:
    """The shard's queries beside those that judge for it elsewhere, and the row's token that comes first.

    q: [B, H, n, D] -> [B, H, n + judges elsewhere, D].
    """
    plan = plans[group.rank]
    elsewhere = [judges_elsewhere(layout, each, causal=causal) for each in plans]
    missing = elsewhere[group.rank]
    first = plan.start - missing if causal else plan.start
    if not any(elsewhere):
        return q, first
    receiver = group.rank + (1 if causal else -1)
    wanted = elsewhere[receiver] if 0 <= receiver < group.size else 0
    sent = q[:, :, q.shape[2] - wanted :] if causal else q[:, :, :wanted]
    shift = group.shift_right if causal else group.shift_left
    received = shift(sent, (*q.shape[:2], missing, q.shape[3]), purpose="judges")
    if received is None:
        return q, first
    return torch.cat([received, q] if causal else [q, received], dim=2), first
