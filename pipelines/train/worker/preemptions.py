"""Notices that nodes will be taken away, and how a worker behaves until they are gone."""

from __future__ import annotations

import os
import time
from typing import Any

_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
_UNKNOWN_DEADLINE_SECONDS = 120.0
"""How long Ray Train (2.60) waits for nodes without an announced end."""
_SLACK_SECONDS = 30.0


class Preemptions:
    """One worker's view of the preemptions that Ray Train tells it of; every worker of a training has one."""

    def __init__(self) -> None:
        # A local cluster has no watcher, and asking would cost an exchange per step for nothing.
        self._watched = os.environ.get(_WATCHER, "1") != "0"
        self._latest: Any = None
        self._ends = 0.0

    def announced(self) -> bool:
        """Says whether another node was announced to go away since the last call; every worker calls it."""
        if not self._watched:
            return False
        import ray.train

        info = ray.train.get_preemption_info()
        if info is None or info == self._latest:
            return False
        self._latest = info
        deadline = info.deadline_ms
        self._ends = time.time() + _UNKNOWN_DEADLINE_SECONDS if deadline is None else deadline / 1000
        return True

    def wait_for_the_end(self) -> None:
        """Waits, where a node was announced to go away, until Ray Train ends this worker for it.

        A worker that lost a peer on such a node lost it to the preemption; if it failed first, Ray Train
        would count that as a failure.
        """
        if self._latest is not None:
            time.sleep(max(0.0, self._ends - time.time()) + _SLACK_SECONDS)
