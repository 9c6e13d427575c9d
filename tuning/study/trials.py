"""One trial: a training and its scores in a folder of their own, finished when `trial.json` is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.context import Context, StageOutput
from pipelines.evaluate.run import run as run_evaluation
from pipelines.evaluate.scores import Scores
from pipelines.system import storage
from pipelines.system.progress import Progress
from pipelines.train.run import run as run_training
from tuning.study.keys import Scoring
from tuning.study.trial import TRAINED, Trial

TRIAL_FILE = "trial.json"


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Attributes:
        trial: what it did.
        recall: by length, the mean over the tasks; `tasks`: each task's.
        perplexity: by length.
        loss: in the end of the training; None where nothing was trained.
        retrieval: what the training's choices of blocks found in its last quarter, as the training sums it
            up; None where it chose none, or nothing was asked.
    """

    trial: Trial
    recall: Mapping[int, float]
    tasks: Mapping[int, Mapping[str, float]]
    perplexity: Mapping[int, float]
    loss: float | None
    retrieval: Mapping[str, Any] | None = None


def run_trial(trial: Trial, scoring: Scoring, context: Context) -> None:
    """Trains and scores, resuming from what an earlier, killed attempt left in the trial's folder."""
    folder = storage.join(context.output, trial.name)
    if storage.exists(storage.join(folder, TRIAL_FILE)):
        return
    quiet = replace(context, name=trial.name, progress=Progress())
    inputs = dict(context.inputs)
    loss, retrieval, model = None, None, trial.model
    if trial.train is not None:
        place = storage.join(folder, "model")
        storage.make_folder(place)
        result = run_training(trial.train, replace(quiet, output=place, seed=trial.seed))
        inputs[TRAINED] = StageOutput(TRAINED, "train", place, result, trial.name, trial.train)
        loss, retrieval, model = result["last_loss"], result.get("retrieval"), TRAINED
    scores = storage.join(folder, "scores")
    storage.make_folder(scores)
    run_evaluation(scoring.of(model), replace(quiet, output=scores, inputs=inputs))
    record = {"trial": trial.name, "loss": loss, "retrieval": retrieval, "label": dict(trial.label)}
    storage.write_json_atomic(storage.join(folder, TRIAL_FILE), record)


def read_result(trial: Trial, output: str) -> TrialResult:
    """Returns what a finished trial came to, read from its folder below `output`."""
    folder = storage.join(output, trial.name)
    record: dict[str, Any] = storage.read_json(storage.join(folder, TRIAL_FILE))
    scores = Scores.read(storage.join(folder, "scores"))
    tasks: dict[int, dict[str, float]] = {}
    for score in scores.of("recall"):
        if score.length is not None:
            tasks.setdefault(score.length, {})[score.task] = score.value
    return TrialResult(
        trial=trial,
        recall={length: sum(each.values()) / len(each) for length, each in tasks.items()},
        tasks=tasks,
        perplexity={score.length: score.perplexity for score in scores.perplexity},
        loss=record["loss"],
        retrieval=record.get("retrieval"),  # older files have none
    )
