"""Runs trials with Ray Tune, several side by side; those already finished are left alone."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.system import storage
from pipelines.system.capacity import cluster_capacity
from pipelines.system.cluster_session import ray_session
from pipelines.system.progress import Task
from pipelines.system.worker_resources import check_room
from pipelines.train.failures import final_failure, restart_mends
from pipelines.train.resources import reservation, reserving
from tuning.study.keys import StudyKeys
from tuning.study.trial import Trial
from tuning.study.trials import TRIAL_FILE, TrialResult, read_result, run_trial

_POLL_SECONDS = 2.0
_FAILURE = "failure"
"""What a trial that failed for good reports."""
_TRIAL_MEMORY = 1 << 20
"""Bytes that a waiting trial reserves."""


def run_trials(
    trials: Sequence[Trial],
    keys: StudyKeys,
    context: Context,
    write: Callable[[Sequence[TrialResult]], object],
) -> list[TrialResult]:
    """Runs every trial that has not finished and returns the outcomes of all, in order.

    `write` gets the outcomes so far whenever there are more: a study takes long, and its table should
    not have to wait for the last trial.

    Raises:
        EspanError: a trial failed; the others' results stay, and the next run goes on from there.
    """
    open_trials = [trial for trial in trials if not _finished(trial, context)]

    def finished_so_far() -> list[TrialResult]:
        return [read_result(trial, context.output) for trial in trials if _finished(trial, context)]

    with context.progress.task(context.name, len(trials), "trials") as task:
        task.advance(len(trials) - len(open_trials))
        if open_trials:
            _run(open_trials, keys, context, task, lambda: write(finished_so_far()))
    found = finished_so_far()
    if len(found) < len(trials):
        raise EspanError(
            f"{len(trials) - len(found)} of {len(trials)} trials did not finish; what the others found is "
            "kept, and the next run goes on from there"
        )
    return found


def _with_resources(trials: Sequence[Trial], context: Context) -> list[Trial]:
    """Decides once, for all trainings, what their workers reserve: a trial, which is a worker itself,
    sees less of the cluster.
    """
    there = cluster_capacity()
    settled, shown = [], set()
    for trial in trials:
        if trial.train is not None:
            workers = reservation(trial.train, there)
            check_room(workers, there)
            shown.add(str(workers))
            trial = replace(trial, train=reserving(trial.train, workers))
        settled.append(trial)
    for line in sorted(shown):
        context.progress.message(f"{context.name}: workers of a trial: {line}")
    return settled


def _finished(trial: Trial, context: Context) -> bool:
    return storage.exists(storage.join(context.output, trial.name, TRIAL_FILE))


def _run(
    trials: Sequence[Trial],
    keys: StudyKeys,
    context: Context,
    task: Task,
    on_finished: Callable[[], object],
) -> None:
    # Tune (2.60) prints tables and hints whatever `verbose` says, unless it is asked for its older output and
    # that is given a callback that keeps quiet. The task's line says how far the study is.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Left to itself, Tune takes Ctrl-C for "wait for all trials and return what is there".
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    ray_session()
    trials = _with_resources(trials, context)
    from ray import tune
    from ray.tune.progress_reporter import TrialProgressCallback

    class Quiet(TrialProgressCallback):
        def _print(self, msg: str) -> None: ...

    by_name = {trial.name: trial for trial in trials}
    # A progress bar holds locks and a terminal: each trial makes its own, which writes to the trial's log.
    parts = {
        field.name: getattr(context, field.name) for field in fields(context) if field.name != "progress"
    }

    output = context.output

    def trainable(config: dict[str, Any]) -> dict[str, str]:
        # An exception restarts the trial from its checkpoints: that is meant for lost machines.
        try:
            run_trial(by_name[config["trial"]], keys.evaluate, Context(**parts))
        except Exception as error:
            if restart_mends(error):
                raise
            return {_FAILURE: f"{config['trial']}: {final_failure(error, output)}"}
        return {}

    folder = tempfile.mkdtemp(prefix="espan-ray-tune-")
    try:
        with _counting(trials, context, task, on_finished):
            results = tune.Tuner(
                # The training's own workers reserve CPUs and GPUs; the trial only waits for them. Tune does
                # not let it reserve nothing.
                tune.with_resources(trainable, tune.PlacementGroupFactory([{"memory": _TRIAL_MEMORY}])),
                param_space={"trial": tune.grid_search(list(by_name))},
                tune_config=tune.TuneConfig(max_concurrent_trials=keys.concurrent),
                run_config=tune.RunConfig(
                    name=context.name,
                    storage_path=folder,
                    verbose=0,
                    callbacks=[Quiet()],
                    failure_config=tune.FailureConfig(max_failures=keys.train.max_failures),
                ),
            ).fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failures = [str(result.metrics[_FAILURE]) for result in results if _FAILURE in (result.metrics or {})]
    failures += [str(error).strip().splitlines()[-1] for error in results.errors]
    if failures:
        raise EspanError(
            f"{len(failures)} of {len(trials)} trials failed, the first with: {failures[0]}; "
            "what the others found is kept, and the next run goes on from there"
        )


@contextmanager
def _counting(
    trials: Sequence[Trial], context: Context, task: Task, on_finished: Callable[[], object]
) -> Iterator[None]:
    """Advances `task` as trials finish; a callback of Tune's must be picklable, and `task` is not."""
    waiting = list(trials)
    over = threading.Event()

    def count() -> None:
        done = [trial for trial in waiting if _finished(trial, context)]
        for trial in done:
            waiting.remove(trial)
            task.advance(1, last=trial.name)
        if done:
            on_finished()

    def watch() -> None:
        while not over.wait(_POLL_SECONDS):
            count()

    thread = threading.Thread(target=watch, name="trials", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        count()
