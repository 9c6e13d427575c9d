"""Crews of workers score every unit once, whoever is lost on the way and however often it is begun again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipelines.errors import EspanError
from pipelines.evaluate.fleet import Fleet
from pipelines.evaluate.outcomes import Outcomes
from pipelines.evaluate.units import Outcome
from pipelines.evaluate.worker import Scorer, Worker
from pipelines.models.references import ModelSource
from pipelines.recipe.keys.attention import FullSection
from pipelines.system.progress import Progress

pytestmark = pytest.mark.usefixtures("local_ray")


@dataclass(frozen=True)
class Told:
    """Writes down who scores it; may end the process, or fail, first.

    Attributes:
        notes: a folder.
        dies: of a crew, the worker whose process ends the first time.
    """

    key: str
    notes: str
    dies: int | None = None
    fails: bool = False
    tokens: int = 1
    count: int = 1

    def score(self, worker: Worker) -> Outcome:
        rank = worker.group.rank if worker.group else 0
        marker = Path(self.notes, f"{self.key}-died")
        if self.dies == rank and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails and rank == self.dies:
            raise ValueError("something\nis wrong")
        together = [0]
        if worker.group:  # an exchange, so that the others wait for the one that ended
            together = worker.group.all_gather(torch.tensor([rank]), purpose="test").flatten().tolist()
        with Path(self.notes, f"{self.key}-{rank}").open("a") as notes:
            notes.write("scored\n")
        return {"key": self.key, "workers": together}


MakeFleet = Callable[..., Fleet]


@pytest.fixture
def make_fleet(tmp_path: Path, model_folder: Path) -> MakeFleet:
    def make_fleet(crews: int = 1, context_parallel: int = 1) -> Fleet:
        scorer = Scorer(
            model=ModelSource(str(model_folder)),
            attention=FullSection(),
            dtype=torch.float32,
            seed=0,
            cpus=1,
            gpus=0,
            context_parallel=context_parallel,
        )
        outcomes = Outcomes(str(tmp_path / "unfinished"))
        return Fleet(scorer, crews=crews, outcomes=outcomes, label="scores", progress=Progress())

    return make_fleet


def times_scored(folder: Path, key: str, rank: int = 0) -> int:
    return len(Path(folder, f"{key}-{rank}").read_text().splitlines())


def test_outcomes_come_in_the_order_of_the_units_and_are_not_scored_again(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    units = [Told(f"unit-{number}", str(tmp_path), tokens=number) for number in range(6)]
    with make_fleet() as fleet:
        assert [each["key"] for each in fleet.score(units[:4], "units")] == [u.key for u in units[:4]]
    with make_fleet(crews=2) as fleet:
        assert [each["key"] for each in fleet.score(units, "units")] == [u.key for u in units]
        assert [each["key"] for each in fleet.score(units[2:3], "units")] == ["unit-2"]
    assert [times_scored(tmp_path, unit.key) for unit in units] == [1] * 6


def test_what_is_asked_twice_is_scored_once(make_fleet: MakeFleet, tmp_path: Path) -> None:
    twice = [Told("same", str(tmp_path)), Told("other", str(tmp_path)), Told("same", str(tmp_path))]
    with make_fleet() as fleet:
        assert [each["key"] for each in fleet.score(twice, "units")] == ["same", "other", "same"]
    assert times_scored(tmp_path, "same") == 1


@pytest.mark.parametrize("dies", [0, 1])
def test_a_worker_that_is_lost_is_replaced_with_those_it_shared_rows_with(
    make_fleet: MakeFleet, tmp_path: Path, dies: int
) -> None:
    units = [Told("first", str(tmp_path)), Told("second", str(tmp_path), dies=dies)]
    with make_fleet(context_parallel=2) as fleet:
        found = fleet.score(units, "units")
    assert [each["workers"] for each in found] == [[0, 1], [0, 1]]
    assert times_scored(tmp_path, "second", dies) == 1


def test_what_one_of_several_workers_raises_is_told_in_one_line(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    Path(tmp_path, "broken-died").touch()
    unit = Told("broken", str(tmp_path), dies=1, fails=True)
    with (
        make_fleet(context_parallel=2) as fleet,
        pytest.raises(EspanError, match=r"^a scoring worker failed: ValueError: something is wrong$"),
    ):
        fleet.score([unit], "units")
