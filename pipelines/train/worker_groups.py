"""Who shares a row and who has rows of its own: workers as data-parallel groups of context-parallel ranks.

Pure arithmetic. Workers of one group follow each other, so that on a cluster they mostly share a node:

    6 workers, context_parallel: 2        group 0: ranks 0 1    group 1: ranks 2 3    group 2: ranks 4 5
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerGroups:
    """How workers are grouped.

    Attributes:
        workers: all of them.
        context_parallel: workers that share each row.

    Raises:
        ValueError: the workers cannot be split into groups of that size.
    """

    workers: int
    context_parallel: int = 1

    def __post_init__(self) -> None:
        if self.context_parallel < 1 or self.workers < 1 or self.workers % self.context_parallel:
            raise ValueError(f"{self.workers} workers cannot be split into groups of {self.context_parallel}")

    @property
    def groups(self) -> int:
        """Data-parallel groups: each runs micro-batches of its own."""
        return self.workers // self.context_parallel

    def group_of(self, rank: int) -> int:
        """Returns the data-parallel group of worker `rank`."""
        return rank // self.context_parallel

    def position_of(self, rank: int) -> int:
        """Returns which part of its group's rows worker `rank` holds, counted from the left."""
        return rank % self.context_parallel

    def ranks_of(self, group: int) -> list[int]:
        """Returns the workers of a data-parallel group, in the order of their parts of a row."""
        return list(range(group * self.context_parallel, (group + 1) * self.context_parallel))
