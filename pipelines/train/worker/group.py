"""The workers as a group: who this one is, and the few things they all do together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.errors import EspanError
from pipelines.train.failures import final_failure, restart_mends
from pipelines.train.worker_groups import WorkerGroups

if TYPE_CHECKING:
    import torch

    from se_model.parallel import ContextParallelGroup

Result = TypeVar("Result")


@dataclass(frozen=True)
class Group:
    """This worker's place among the workers of one training run; needs an initialised process group.

    Attributes:
        rank: 0 ... size - 1 over all nodes.
        size: number of workers.
        local_rank: rank among the workers of this node.
        node: number of this node.
        device: where this worker's model lives.
    """

    rank: int
    size: int
    local_rank: int
    node: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this worker writes what is written once per run."""
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """Whether this worker does what is done once per node."""
        return self.local_rank == 0

    def barrier(self) -> None:
        """Returns when every worker has called it."""
        import torch.distributed

        torch.distributed.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Returns every worker's `value`, in order of rank, on every worker."""
        import torch.distributed

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def agree(self, action: Callable[[], Result]) -> Result:
        """Runs `action`, which must not communicate, on every worker; fails on all of them if it fails on
        one.

        Without this the others would wait for the failed one in their next exchange.

        Raises:
            EspanError: the first failing worker's.
            ConnectionError: the first failing worker lost a connection.
            Exception: whatever else this worker's `action` raised.
        """
        result: Result | None = None
        raised: Exception | None = None
        try:
            result = action()
        except Exception as error:
            raised = error
        told = [each for each in self.gather(_told(raised)) if each is not None]
        if raised is not None and not isinstance(raised, EspanError):
            raise raised
        if told:
            raise told[0] from raised
        # Some worker failed unless all of them have a result.
        return result  # type: ignore[return-value]


def _told(error: Exception | None) -> Exception | None:
    """Returns what the other workers raise for a failure of this one; some exceptions cannot travel."""
    if error is None:
        return None
    return ConnectionError(str(error)) if restart_mends(error) else final_failure(error)


@contextmanager
def sharing_group(group: Group, layout: WorkerGroups) -> Iterator[ContextParallelGroup | None]:
    """Yields the workers that share this worker's rows; None where every worker has rows of its own.

    Every worker calls it.
    """
    if layout.context_parallel == 1:
        yield None
        return
    import torch.distributed

    from se_model.parallel import ContextParallelGroup

    # Each call makes one group and takes all workers, those outside of it too, in the same order.
    made = [torch.distributed.new_group(layout.ranks_of(each)) for each in range(layout.groups)]
    own = made[layout.group_of(group.rank)]
    yield ContextParallelGroup(own)
    # Not after a failure: other workers may still wait in an exchange, and taking the group down would wait
    # with them. The process ends then, and its groups with it.
    torch.distributed.destroy_process_group(own)


def ray_train_group() -> Group:
    """Returns this Ray Train worker's place."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    return Group(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        node=context.get_node_rank(),
        device=ray.train.torch.get_device(),
    )
