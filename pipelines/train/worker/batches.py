"""Which rows make up which step, as arithmetic: no state besides the number of the step.

Position `p` of the endless stream of rows belongs to epoch `p // rows`, whose order is a permutation drawn
from (seed, epoch). Step `s` takes the `rows_per_step` positions after those of the steps before it. So the
data cursor of a checkpoint *is* its step, resuming skips nothing by reading, and the rows of a step do not
depend on the number of workers, nor on how many of them share a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from se_model.span.documents import DocumentBounds

ROW_ORDER_STREAM = 0x726F7773
"""Keeps the permutations apart from other random numbers drawn from the same seed."""


class Rows(Protocol):
    """A packed corpus: `pipelines.prepare.shards.ShardReader`, or a list in a test."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Returns `(input_ids: [L], doc_lengths: [N], summing to L)`."""
        ...


@dataclass(frozen=True)
class RowOrder:
    """The order in which rows are seen, epoch after epoch; every epoch sees every row once."""

    rows: int
    seed: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError("there are no rows to train on")

    def at(self, start: int, count: int) -> list[int]:
        """Returns the rows at positions `start` ... `start + count - 1`."""
        positions = range(start, start + count)
        return [int(_permutation(self.rows, self.seed, p // self.rows)[p % self.rows]) for p in positions]


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([ROW_ORDER_STREAM, seed, epoch]).permutation(rows)


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together.

    Attributes:
        number: counts the micro-batches of all steps and all groups from 0. Chunk sizes and dropout are
            drawn from it, so they do not depend on which group computes the micro-batch.
        rows: indices into the corpus.
    """

    number: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class BatchPlan:
    """How a step's rows are dealt to data-parallel groups.

    Attributes:
        rows_per_step: rows of one update, over all groups.
        micro_batch_rows: rows that go through the model together.
        groups: data-parallel groups. Without context parallelism each worker is one; with it the workers of a
            group run the same micro-batches, each its part of every row (see `worker_groups.py`).

    Raises:
        ValueError: the rows cannot be split into whole micro-batches for every group.
    """

    rows_per_step: int
    micro_batch_rows: int
    groups: int

    def __post_init__(self) -> None:
        together = self.micro_batch_rows * self.groups
        if self.rows_per_step < 1 or self.rows_per_step % together:
            raise ValueError(
                f"{self.rows_per_step} rows per step cannot be dealt to {self.groups} data-parallel groups "
                f"in micro-batches of {self.micro_batch_rows}: it must be a multiple of {together}"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches that each group runs in one step."""
        return self.rows_per_step // (self.micro_batch_rows * self.groups)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of one step, over all groups."""
        return self.rows_per_step // self.micro_batch_rows

    def step_rows(self, order: RowOrder, step: int) -> list[int]:
        """Returns all rows of step `step` (counted from 1), for all groups."""
        return order.at((step - 1) * self.rows_per_step, self.rows_per_step)

    def micro_batches(self, order: RowOrder, step: int, group: int) -> list[MicroBatch]:
        """Returns what data-parallel group `group` runs in step `step` (counted from 1), in order."""
        rows = self.step_rows(order, step)
        first = (step - 1) * self.micro_batches_per_step
        return [
            MicroBatch(
                first + index,
                tuple(rows[index * self.micro_batch_rows : (index + 1) * self.micro_batch_rows]),
            )
            for index in range(group, self.micro_batches_per_step, self.groups)
        ]


def target_count(corpus: Rows, rows: Sequence[int]) -> int:
    """Returns how many tokens of `rows` are predicted: all but the first of each document.

    Every worker counts for the rows of *all* workers, so that a step's loss is normalised alike without an
    exchange.
    """
    lengths = [corpus.row(row)[1] for row in rows]
    return sum(int(each.sum()) - len(each) for each in lengths)


@dataclass(frozen=True)
class ModelInput:
    """One micro-batch as the model takes it.

    Attributes:
        input_ids: [rows, L]; packed rows are joined to one: [1, rows * L].
        documents: of the joined row; None when the rows are not packed by document.
    """

    input_ids: Tensor
    documents: DocumentBounds | None


def model_input(corpus: Rows, batch: MicroBatch, packed: bool) -> ModelInput:
    """Reads a micro-batch's rows and lays them out for the model."""
    import torch

    from se_model.span.documents import DocumentBounds

    rows = [corpus.row(index) for index in batch.rows]
    input_ids = torch.from_numpy(np.stack([ids for ids, _ in rows]).astype(np.int64))
    if not packed:
        return ModelInput(input_ids, None)
    lengths = np.concatenate([lengths for _, lengths in rows])
    bounds = (0, *np.cumsum(lengths).tolist())
    return ModelInput(input_ids.reshape(1, -1), DocumentBounds(bounds))
