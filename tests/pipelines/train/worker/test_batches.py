"""Which rows make up which step."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.train.worker.batches import BatchPlan, MicroBatch, RowOrder, model_input, target_count


class Listed:
    """A corpus in memory: (tokens, document lengths) per row."""

    def __init__(self, rows: list[tuple[list[int], list[int]]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, lengths = self._rows[index]
        return np.array(tokens, np.int32), np.array(lengths, np.int32)


CORPUS = Listed([([1, 2, 3, 4], [4]), ([5, 6, 7, 8], [1, 3]), ([9, 10, 11, 12], [2, 2])])


@given(rows=st.integers(1, 40), seed=st.integers(0, 2**62), epochs=st.integers(1, 3))
def test_every_epoch_sees_every_row_once(rows: int, seed: int, epochs: int) -> None:
    seen = RowOrder(rows, seed).at(0, rows * epochs)
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_epochs_and_seeds_differ_in_their_order() -> None:
    first, second = RowOrder(50, 1).at(0, 50), RowOrder(50, 1).at(50, 50)
    assert first != second
    assert first != RowOrder(50, 2).at(0, 50)
    assert first == RowOrder(50, 1).at(0, 50)


@given(
    rows=st.integers(1, 30),
    micro_batch_rows=st.integers(1, 3),
    groups=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    steps=st.integers(1, 5),
)
def test_groups_together_run_exactly_the_rows_of_the_stream(
    rows: int, micro_batch_rows: int, groups: int, accumulation: int, steps: int
) -> None:
    order = RowOrder(rows, 7)
    plan = BatchPlan(micro_batch_rows * groups * accumulation, micro_batch_rows, groups)
    alone = BatchPlan(plan.rows_per_step, micro_batch_rows, 1)
    stream = []
    for step in range(1, steps + 1):
        dealt = [plan.micro_batches(order, step, group) for group in range(groups)]
        assert all(len(batches) == plan.accumulation == accumulation for batches in dealt)
        together = sorted(chain.from_iterable(dealt), key=lambda batch: batch.number)
        # The micro-batches, their numbers included, are those of one group.
        assert together == alone.micro_batches(order, step, 0)
        stream += [row for batch in together for row in batch.rows]
    assert stream == order.at(0, steps * plan.rows_per_step)


def test_micro_batches_are_numbered_without_gaps_over_steps() -> None:
    plan, order = BatchPlan(6, 2, 3), RowOrder(10, 0)
    numbers = [
        batch.number
        for step in (1, 2)
        for group in range(3)
        for batch in plan.micro_batches(order, step, group)
    ]
    assert sorted(numbers) == list(range(6))


def test_rows_that_cannot_be_dealt_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a multiple of 6"):
        BatchPlan(rows_per_step=8, micro_batch_rows=2, groups=3)


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        RowOrder(0, 0)


def test_every_token_but_the_first_of_each_document_is_a_target() -> None:
    assert target_count(CORPUS, [0, 1, 2]) == 3 + 2 + 2
    assert target_count(CORPUS, [1, 1]) == 4


def test_packed_rows_are_joined_with_the_boundaries_of_their_documents() -> None:
    joined = model_input(CORPUS, MicroBatch(0, (1, 2)), packed=True)
    assert joined.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12]]
    assert joined.documents is not None
    assert joined.documents.bounds == (0, 1, 4, 6, 8)
    assert {type(bound) for bound in joined.documents.bounds} == {int}


def test_whole_rows_stay_apart() -> None:
    rows = model_input(CORPUS, MicroBatch(0, (2, 0)), packed=False)
    assert rows.input_ids.tolist() == [[9, 10, 11, 12], [1, 2, 3, 4]]
    assert rows.documents is None
