"""How long training takes is measured on its own steps and extrapolated; no other figure is given."""

from __future__ import annotations

import io
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipelines.context import Context
from pipelines.recipe.keys.train import TrainKeys
from pipelines.recipe.parse import read_recipe
from pipelines.records import STARTED
from pipelines.run.lineage import FileHashes, started_record
from pipelines.run.plan import plan_recipe
from pipelines.run.workspace import survey
from pipelines.system import storage
from pipelines.system.progress import Progress
from pipelines.train.events import LiveProgress
from pipelines.train.job import TrainJob, resolve_job
from pipelines.train.worker.group import Group
from pipelines.train.worker.metrics import read_metrics
from tests.distributed import run_distributed
from tests.pipelines.train.conftest import TINY, write_corpus

TOKENS = 256
UNKNOWN = "measured in the first steps, then shown while it trains and here"


def shown(events: list[dict[str, Any]], gpus: float = 0.0) -> list[str]:
    stream = io.StringIO()
    live = LiveProgress(Progress(stream, interval_seconds=0), "tuned", 1000, tokens_per_step=1000, gpus=gpus)
    for event in events:
        live.show(event)
    live.close()
    return stream.getvalue().splitlines()


def steps(first: int, seconds: list[float], nodes: int = 2) -> list[dict[str, Any]]:
    return [
        {"step": first + number, "loss": 1.0, "tokens_per_second": 1000 / each, "nodes": nodes}
        for number, each in enumerate(seconds)
    ]


def test_the_time_left_is_said_once_without_the_slow_first_step() -> None:
    lines = shown([{"at": 0}, *steps(1, [300, 11, 12, 11.5, 13, 11]), *steps(7, [11.5])], gpus=8)
    said = [line for line in lines if "about" in line]
    expected = "about 3.2 h, 6.4 node-hours, 25.4 GPU-hours left (median of 5 steps: 11.5 s; checkpoints not"
    assert said == [f"tuned: {expected} counted)"]
    assert "left" not in "".join(lines[: lines.index(said[0])])
    assert "left 3.2 h, 6.3 node-hours, 25.4 GPU-hours" in lines[-1]


def test_steps_before_a_restart_say_nothing_of_the_pace_after_it() -> None:
    before = [{"at": 0}, *steps(1, [300, 10, 10, 10, 10, 10])]
    after = [{"at": 4}, *steps(5, [300, 36, 36, 36, 36], nodes=1)]
    lines = shown([*before, *after])
    assert lines[-1].endswith("left being measured")
    lines = shown([*before, *after, *steps(10, [36], nodes=1)])
    assert "left 9.9 h, 9.9 node-hours" in lines[-1]
    assert "GPU" not in lines[-1]


def train_alone(rank: int, ranks: int, job: TrainJob) -> None:
    from pipelines.train.worker.loop import train

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    train(job, Group(rank, ranks, rank, 0, torch.device("cpu")), lambda event: None)


class Workspace:
    """A recipe with one training, of which four steps ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = str(write_corpus(folder / "shards"))
        self.output = folder / "run" / "tuned"
        self.output.mkdir(parents=True)
        stage = read_recipe(self.recipe(steps=4)).stages["tuned"].keys
        assert isinstance(stage, TrainKeys)
        context = Context("tuned", str(self.output), 3, {}, str(folder / "run"), {})
        self.mark_started(steps=4)
        run_distributed(train_alone, 1, resolve_job(stage, context))

    def recipe(self, **keys: Any) -> Path:
        train = {
            "data": self.data,
            "model": {"new": TINY},
            "attention": {"kind": "full"},
            "tokens_per_step": TOKENS,
            "learning_rate": 1e-3,
            "resources": {"gpus": 0},
        } | keys
        path = self.folder / "recipe.yaml"
        text = {"name": "r", "workspace": str(self.folder / "run"), "stages": {"tuned": {"train": train}}}
        path.write_text(yaml.safe_dump(text))
        return path

    def mark_started(self, **keys: Any) -> None:
        recipe = read_recipe(self.recipe(**keys))
        (standing,) = survey(recipe, str(self.folder / "run"), FileHashes.load(str(self.folder / "run")))
        record = started_record(standing.stage, standing.identity)
        storage.write_json_atomic(str(self.output / STARTED), record)

    def time(self, **keys: Any) -> str:
        (stage,) = plan_recipe(self.recipe(**keys)).stages
        return stage.details["time"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


def test_a_plan_extrapolates_the_steps_that_ran_to_those_that_are_left(workspace: Workspace) -> None:
    records = read_metrics(str(workspace.output / "metrics.jsonl"))
    median = statistics.median(TOKENS / record["tokens_per_second"] for record in records[1:])
    workspace.mark_started(steps=1000)
    text = workspace.time(steps=1000)
    assert "for the 996 steps left (median of 3 steps:" in text
    node_hours = float(text.split(" node-hours")[0].split(", ")[-1])
    assert node_hours == pytest.approx(996 * median / 3600, rel=0.06)


def test_steps_that_are_unlike_those_that_are_left_are_not_used(workspace: Workspace) -> None:
    workspace.mark_started(steps=4)
    assert "for the 1,000 steps left" in workspace.time(steps=1000, learning_rate=2e-3)
    assert workspace.time(steps=1000, workers=2) == UNKNOWN
    assert workspace.time(steps=1000, tokens_per_step=2 * TOKENS) == UNKNOWN
    assert workspace.time(steps=1000, activation_checkpointing=True) == UNKNOWN


def test_without_any_measured_step_a_plan_invents_no_time(workspace: Workspace) -> None:
    recipe = workspace.recipe(steps=4)
    recipe.write_text(
        recipe.read_text().replace(str(workspace.folder / "run"), str(workspace.folder / "new"))
    )
    (stage,) = plan_recipe(recipe).stages
    assert stage.details["time"] == UNKNOWN
