"""Exchanges between ranks move what they say, in every dtype, and count the bytes that they move."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from se_model.parallel import ContextParallelGroup, gather_states, receive_left
from tests.distributed import run_distributed
from tests.tolerances import EXACT

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64]


def numbers(rank: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randint(-50, 50, shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


def exchange_everything(rank: int, ranks: int) -> list[dict[str, object]]:
    return [_exchange(rank, ranks, dtype) for dtype in DTYPES]


def _exchange(rank: int, ranks: int, dtype: torch.dtype) -> dict[str, object]:
    group = ContextParallelGroup()
    x = numbers(rank, ranks, 3, dtype=dtype).t().contiguous().t()  # strides are not to matter
    parts = [numbers(10 * rank + to, rank + 1, to, dtype=dtype) for to in range(ranks)]
    shapes = [(source + 1, rank) for source in range(ranks)]
    pending = group.all_to_all(parts, shapes, purpose="pending", async_op=True)
    return {
        "gathered": group.all_gather(x, purpose="gather"),
        "scalars": group.all_gather(x[0, 0], purpose="gather"),
        "reduced": group.reduce_scatter(x, purpose="reduce", direction="backward"),
        "swapped": group.all_to_all(parts, shapes, purpose="swap"),
        "pending": pending.wait(),
        "right": group.shift_right(numbers(rank, rank + 1, dtype=dtype), (rank,), purpose="right"),
        "left": group.shift_left(numbers(rank, rank + 1, dtype=dtype), (rank + 2,), purpose="left"),
    }


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_exchange_moves_every_dtype(ranks: int) -> None:
    for rank, by_dtype in enumerate(run_distributed(exchange_everything, ranks)):
        for dtype, got in zip(DTYPES, by_dtype, strict=True):
            rows = torch.stack([numbers(source, ranks, 3, dtype=dtype) for source in range(ranks)])
            sent_here = [numbers(10 * s + rank, s + 1, rank, dtype=dtype) for s in range(ranks)]
            torch.testing.assert_close(got["gathered"], rows, **EXACT)
            torch.testing.assert_close(got["scalars"], rows[:, 0, 0], **EXACT)
            torch.testing.assert_close(got["reduced"], rows[:, rank].sum(0), **EXACT)
            torch.testing.assert_close(got["swapped"], sent_here, **EXACT)
            torch.testing.assert_close(got["pending"], sent_here, **EXACT)
            for name, source in (("right", rank - 1), ("left", rank + 1)):
                if source in range(ranks):
                    expected = numbers(source, source + 1, dtype=dtype)
                    torch.testing.assert_close(got[name], expected, **EXACT)
                else:
                    assert got[name] is None


def count_bytes(rank: int, ranks: int) -> dict[tuple[str, str], tuple[int, int]]:
    group = ContextParallelGroup()
    x = torch.zeros(ranks, 5, dtype=torch.bfloat16)
    group.all_gather(x, purpose="gather")
    group.reduce_scatter(x, purpose="reduce", direction="backward")
    group.all_to_all([x[:to] for to in range(ranks)], [(rank, 5)] * ranks, purpose="swap")
    group.shift_right(x, x.shape, purpose="right")
    totals = group.counter.total(), group.counter.total("backward")
    by_purpose = dict(group.counter.by_purpose) | {("all", "both"): totals[0], ("all", "backward"): totals[1]}
    return {key: (traffic.sent, traffic.received) for key, traffic in by_purpose.items()}


def test_bytes_are_counted_without_the_own_slice() -> None:
    first, middle, last = run_distributed(count_bytes, 3)
    row = 5 * 2
    assert middle["gather", "forward"] == (2 * 3 * row, 2 * 3 * row)
    assert middle["reduce", "backward"] == (2 * row, 2 * row)
    assert middle["swap", "forward"] == ((0 + 2) * row, 2 * row)
    assert [rank["right", "forward"] for rank in (first, middle, last)] == [
        (3 * row, 0),
        (3 * row, 3 * row),
        (0, 3 * row),
    ]
    assert middle["all", "backward"] == (2 * row, 2 * row)
    assert middle["all", "both"] == ((6 + 2 + 2 + 3) * row, (6 + 2 + 2 + 3) * row)


def differentiate(rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    group = ContextParallelGroup()
    x = numbers(rank, 4).requires_grad_()
    (gather_states(x, group, "gather") * numbers(100 + rank, ranks, 4)).sum().backward()
    gathered, x.grad = x.grad, None
    (receive_left(x, group, (4,), "halo") * numbers(200 + rank, 4)).sum().backward()
    return gathered, x.grad


@pytest.mark.parametrize("ranks", [1, 3])
def test_gradients_return_to_where_the_values_came_from(ranks: int) -> None:
    for rank, (gathered, halo) in enumerate(run_distributed(differentiate, ranks)):
        expected = sum(numbers(100 + other, ranks, 4)[rank] for other in range(ranks))
        torch.testing.assert_close(gathered, expected, **EXACT)
        right = numbers(201 + rank, 4) if rank + 1 < ranks else torch.zeros(4, dtype=torch.float64)
        torch.testing.assert_close(halo, right, **EXACT)


def gather_in_pairs(rank: int, ranks: int) -> tuple[int, Tensor, Tensor | None]:
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    group = ContextParallelGroup(pairs[rank // 2])
    shifted = group.shift_right(torch.tensor([rank]), (1,), purpose="shift")
    return group.rank, group.all_gather(torch.tensor(rank), purpose="gather"), shifted


def test_several_groups_side_by_side_keep_to_themselves() -> None:
    results = run_distributed(gather_in_pairs, 4)
    assert [(rank, x.tolist()) for rank, x, _ in results] == [
        (0, [0, 1]),
        (1, [0, 1]),
        (0, [2, 3]),
        (1, [2, 3]),
    ]
    assert [x if x is None else x.tolist() for *_, x in results] == [None, [0], None, [2]]


def give_too_few_parts(rank: int, ranks: int) -> None:
    ContextParallelGroup().all_to_all([torch.zeros(1)], [(1,)] * ranks, purpose="swap")


def fail_on_one(rank: int, ranks: int) -> None:
    if rank == 1:
        raise LookupError("nothing here")
    ContextParallelGroup().all_gather(torch.zeros(1), purpose="wait")


def test_a_part_for_every_rank_or_a_refusal() -> None:
    with pytest.raises(ValueError, match="2 each; got 1 and 2"):
        run_distributed(give_too_few_parts, 2)


def test_a_failing_rank_is_heard_at_once_and_with_its_traceback() -> None:
    with pytest.raises(LookupError, match="nothing here") as caught:
        run_distributed(fail_on_one, 2)
    assert "on rank 1 of 2" in caught.value.__notes__[0]
    assert "fail_on_one" in caught.value.__notes__[0]
