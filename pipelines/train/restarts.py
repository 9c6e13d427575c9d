"""When Ray Train starts a training's workers again, and when it ends the training instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.exceptions import OutOfMemoryError
from ray.train import FailureConfig, UserCallback

from pipelines.train.failures import FinalFailure, first_failure

_UNLIMITED = -1
_KILLED_FOR_MEMORY = "running low on memory"


def failure_config(max_failures: int, max_preemptions: int | None) -> FailureConfig:
    """Returns how often workers are started again: after losses, and apart from them after preemptions.

    A preemption is a loss that Ray was told of beforehand: a node that is drained for that reason
    (`ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION`).
    """
    return FailureConfig(
        max_failures=max_failures,
        max_preemption_failures=_UNLIMITED if max_preemptions is None else max_preemptions,
    )


class EndAtOnce(UserCallback):
    """Ends a training whose failure would happen again; runs in Ray Train's controller.

    An exception in a callback is what Ray Train (2.60) never retries.
    """

    def __init__(self) -> None:
        self._killed_for_memory = 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Looks at what workers raised.

        Raises:
            FinalFailure: a restart would not fix it.
        """
        final = first_failure(worker_exceptions)
        if final is not None:
            raise final
        self._killed_for_memory += any(map(_was_killed_for_memory, worker_exceptions.values()))
        if self._killed_for_memory > 1:
            raise FinalFailure(
                "Ray killed a worker twice because its machine's memory ran out; lower workers or "
                "micro_batch_rows, set activation_checkpointing: true, or use machines with more memory"
            )


def _was_killed_for_memory(error: Exception) -> bool:
    cause = getattr(error, "health_check_failure", error)
    return isinstance(cause, OutOfMemoryError) or _KILLED_FOR_MEMORY in str(cause)
