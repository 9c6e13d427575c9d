"""Which workers share rows, and which micro-batches that gives each of them."""

import pytest

from pipelines.train.worker.batches import BatchPlan, RowOrder
from pipelines.train.worker_groups import WorkerGroups


def test_workers_that_follow_each_other_share_rows() -> None:
    layout = WorkerGroups(workers=6, context_parallel=2)
    assert layout.groups == 3
    assert [layout.group_of(rank) for rank in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [layout.position_of(rank) for rank in range(6)] == [0, 1, 0, 1, 0, 1]
    assert [layout.ranks_of(group) for group in range(3)] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(("workers", "context_parallel"), [(1, 1), (4, 1), (4, 2), (4, 4), (12, 3)])
def test_every_worker_is_in_one_group_at_one_place(workers: int, context_parallel: int) -> None:
    layout = WorkerGroups(workers, context_parallel)
    ranks = [layout.ranks_of(group)[place] for group in range(layout.groups) for place in _places(layout)]
    assert ranks == list(range(workers))
    assert all(layout.ranks_of(layout.group_of(rank))[layout.position_of(rank)] == rank for rank in ranks)


def _places(layout: WorkerGroups) -> range:
    return range(layout.context_parallel)


@pytest.mark.parametrize(("workers", "context_parallel"), [(4, 3), (2, 4), (0, 1), (2, 0)])
def test_groups_that_would_not_be_whole_are_refused(workers: int, context_parallel: int) -> None:
    with pytest.raises(ValueError, match=f"{workers} workers cannot be split into groups"):
        WorkerGroups(workers, context_parallel)


@pytest.mark.parametrize(("workers", "context_parallel"), [(1, 1), (2, 2), (4, 2), (4, 4)])
def test_workers_of_a_group_run_the_same_micro_batches_and_groups_together_those_of_one_worker(
    workers: int, context_parallel: int
) -> None:
    layout, order = WorkerGroups(workers, context_parallel), RowOrder(11, 3)
    plan = BatchPlan(rows_per_step=8, micro_batch_rows=2, groups=layout.groups)
    alone = BatchPlan(rows_per_step=8, micro_batch_rows=2, groups=1)
    dealt = [plan.micro_batches(order, 5, layout.group_of(rank)) for rank in range(workers)]
    for group in range(layout.groups):
        first, *others = (dealt[rank] for rank in layout.ranks_of(group))
        assert all(other == first for other in others)
    together = [batch for group in range(layout.groups) for batch in dealt[layout.ranks_of(group)[0]]]
    assert sorted(together, key=lambda batch: batch.number) == alone.micro_batches(order, 5, 0)
