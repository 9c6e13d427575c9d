"""One trial: a training and its scores in a folder of their own, finished when `trial.json` is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.evaluate.check import run as run_evaluation
from pipelines.recipe.keys.section import Context, StageOutput
from pipelines.system import storage
from pipelines.system.progress import Progress
from pipelines.train.check import TrainStage
from pipelines.train.check import run as run_training
from tuning.study import TRAINED, Scoring

TRIAL_FILE = "trial.json"


@dataclass(frozen=True)
class Trial:
    """What one trial does.

    Attributes:
        name: also its folder's name.
        seed: of its training; its scores use the study's seed, so that all trials answer the same questions.
        label: what it varies, for tables: column -> value.
        train: its training; None scores `model` as it is.
        model: what is scored where nothing is trained.
    """

    name: str
    seed: int
    label: Mapping[str, str]
    train: TrainStage | None
    model: str


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: mean recall over the tasks, each task's, and perplexity, by length."""

    trial: Trial
    recall: Mapping[int, float]
    tasks: Mapping[int, Mapping[str, float]]
    perplexity: Mapping[int, float]
    loss: float | None
    seconds: float


def run_trial(trial: Trial, scoring: Scoring, context: Context) -> None:
    """Trains and scores, going on from what an earlier, killed attempt left in the trial's folder."""
    folder = storage.join(context.output, trial.name)
    if storage.exists(storage.join(folder, TRIAL_FILE)):
        return
    quiet = replace(context, name=trial.name, progress=Progress())
    inputs = dict(context.inputs)
    loss, seconds, model = None, 0.0, trial.model
    if trial.train is not None:
        place = storage.join(folder, "model")
        storage.make_folder(place)
        result = run_training(trial.train, replace(quiet, output=place, seed=trial.seed, resuming=True))
        inputs[TRAINED] = StageOutput(TRAINED, "train", place, result, trial.name, trial.train)
        loss, seconds, model = result["last_loss"], result.get("seconds", 0.0), TRAINED
    scores = storage.join(folder, "scores")
    storage.make_folder(scores)
    run_evaluation(scoring.stage(model), replace(quiet, output=scores, inputs=inputs))
    record = {"trial": trial.name, "loss": loss, "seconds": seconds, "label": dict(trial.label)}
    storage.write_json_atomic(storage.join(folder, TRIAL_FILE), record)


def read_outcome(trial: Trial, output: str) -> Outcome:
    """Returns what a finished trial came to, read from its folder below `output`."""
    folder = storage.join(output, trial.name)
    record: dict[str, Any] = storage.read_json(storage.join(folder, TRIAL_FILE))
    scores = storage.read_json(storage.join(folder, "scores", "scores.json"))
    tasks: dict[int, dict[str, float]] = {}
    for score in scores["recall"]:
        tasks.setdefault(score["length"], {})[score["task"]] = score["recall"]
    return Outcome(
        trial=trial,
        recall={length: sum(each.values()) / len(each) for length, each in tasks.items()},
        tasks=tasks,
        perplexity={score["length"]: score["perplexity"] for score in scores["perplexity"]},
        loss=record["loss"],
        seconds=record["seconds"],
    )
