"""The process behind a worker: a Ray actor that joins those it shares rows with, and scores units."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipelines.evaluate.units import Outcome, Unit
from pipelines.evaluate.worker import Scorer, Worker

_SECONDS_TO_MISS_A_WORKER = 10.0


class _Seat:
    """One worker of a crew; its methods run in a process of its own."""

    def __init__(self, scorer: Scorer, rank: int) -> None:
        self._scorer, self._rank = scorer, rank
        self._worker: Worker | None = None

    def meeting_point(self) -> str:
        """Returns where the crew's processes find each other: this node's address and a free port of it."""
        import socket

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return f"tcp://{ray.util.get_node_ip_address()}:{port}"

    def load(self, meeting_point: str | None) -> None:
        """Joins the others, where there are any, and loads the model."""
        group = None
        if meeting_point is not None:
            import torch.distributed

            from se_model.parallel import ContextParallelGroup

            torch.distributed.init_process_group(
                "nccl" if self._scorer.gpus else "gloo",
                init_method=meeting_point,
                rank=self._rank,
                world_size=self._scorer.context_parallel,
            )
            group = ContextParallelGroup()
        self._worker = self._scorer.load(group)

    def score(self, unit: Unit) -> Outcome | None:
        """Returns what becomes of a unit; of a crew the first worker tells."""
        assert self._worker is not None, "a crew loads the model before it scores"
        started = time.perf_counter()
        outcome = unit.score(self._worker)
        return {**outcome, "seconds": time.perf_counter() - started} if self._rank == 0 else None


@dataclass
class Crew:
    """The workers that score a unit together: `context_parallel` actors, for which nodes reserve all or none.

    Attributes:
        ready: whether the model is loaded.
        unit: what is being scored.
        running: what each worker still has to answer.
    """

    seats: list[Any]
    room: PlacementGroup | None
    ready: bool = False
    unit: Unit | None = None
    running: list[Any] = field(default_factory=list)
    _outcome: Outcome | None = None

    @classmethod
    def start(cls, scorer: Scorer) -> Crew:
        """Asks for the workers and has them load the model, once the cluster has room for them."""
        resources = {"CPU": scorer.cpus, "GPU": float(scorer.gpus), "memory": float(scorer.memory)}
        size, room = scorer.context_parallel, None
        # "DEFAULT": inside a trial of Ray Tune, actors would else have to fit into what the trial reserved.
        strategies: list[Any] = ["DEFAULT"]
        if size > 1:
            bundle = {name: amount for name, amount in resources.items() if amount}
            room = placement_group([bundle] * size, strategy="PACK")
            strategies = [
                PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=rank)
                for rank in range(size)
            ]
        actor = ray.remote(_Seat)
        seats = [
            actor.options(
                num_cpus=scorer.cpus, num_gpus=scorer.gpus, memory=scorer.memory, scheduling_strategy=strategy
            ).remote(scorer, rank)
            for rank, strategy in enumerate(strategies)
        ]
        crew = cls(seats, room)
        # A reference, which Ray resolves when the first worker is there.
        meeting_point = seats[0].meeting_point.remote() if size > 1 else None
        crew.running = [seat.load.remote(meeting_point) for seat in seats]
        return crew

    def take(self, unit: Unit) -> None:
        """Begins to score a unit."""
        self.unit, self._outcome = unit, None
        self.running = [seat.score.remote(unit) for seat in self.seats]

    def answered(self, reference: Any) -> Outcome | None:
        """Takes one worker's answer; returns the outcome of the unit when it was the last.

        Raises:
            RayError: the worker failed or is lost.
        """
        told = ray.get(reference)
        self._outcome = told if told is not None else self._outcome
        self.running.remove(reference)
        if self.running:
            return None
        self.ready = True
        return self._outcome

    def lost(self, error: Exception) -> bool:
        """Whether a failure comes from a worker's end: one whose process or node is gone can be replaced.

        Those that shared a row with it fail first, as a rule, because it does not answer.
        """
        if isinstance(error, ray.exceptions.RayActorError):
            return True
        others, _ = ray.wait(self.running, num_returns=len(self.running), timeout=_SECONDS_TO_MISS_A_WORKER)
        return any(_ended(reference) for reference in others)

    def end(self) -> None:
        """Ends the workers, whatever they do."""
        for seat in self.seats:
            ray.kill(seat)
        if self.room is not None:
            remove_placement_group(self.room)


def _ended(reference: Any) -> bool:
    try:
        ray.get(reference)
    except ray.exceptions.RayActorError:
        return True
    except ray.exceptions.RayError:
        return False
    return False
