"""The driver's side of training: starts the workers, shows their progress, returns the result."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.models.references import write_model_file
from pipelines.recipe.keys.train import TrainKeys
from pipelines.records import FAILURE_FILE
from pipelines.system import storage
from pipelines.system.capacity import cluster_capacity
from pipelines.system.cluster_session import ray_session
from pipelines.system.precision import NoBfloat16Error, without_bf16
from pipelines.system.surroundings import network_switches
from pipelines.system.worker_resources import Reservation, check_room
from pipelines.train.events import EventQueue, LiveProgress
from pipelines.train.failures import FinalFailure
from pipelines.train.job import TrainJob, resolve_job, training_precision
from pipelines.train.resources import in_precision, reservation
from pipelines.train.worker.checkpoints import CheckpointStore

if TYPE_CHECKING:
    from ray.train import Result

POLL_SECONDS = 0.5
START_TIMEOUT_SECONDS = 900


def run(keys: TrainKeys, context: Context) -> dict[str, Any]:
    """Trains on from the newest checkpoint in the stage's folder; leaves the model and `model.json` there.

    Raises:
        EspanError: training cannot start, diverged, or lost workers more often than `max_failures`.
    """
    session = ray_session()
    # Ray Train gives up on workers that are not up after a minute, and starts over forever; a machine
    # from an autoscaler, or a busy one, takes longer.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_SECONDS))
    if session.started_here:
        # No node of a local cluster is announced to go away; the watcher would be one more process to start.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    capacity = cluster_capacity()
    workers = reservation(keys, capacity)
    check_room(workers, capacity)
    choice = training_precision(keys, context.output, workers)
    job = resolve_job(keys, context, choice.precision)
    context.progress.message(f"{context.name}: workers: {workers}")
    context.progress.message(f"{context.name}: precision: {choice.text(workers.gpus)}")
    context.progress.message(f"{context.name}: attention: {keys.attention.text}")
    live = LiveProgress(
        context.progress,
        context.name,
        keys.steps,
        keys.tokens_per_step,
        workers.gpus * keys.workers,
    )
    try:
        try:
            outcome = run_workers(job, workers, live, check_bf16=choice.assumed)
        except NoBfloat16Error as error:
            choice = without_bf16(error)
            context.progress.message(f"{context.name}: precision: {choice.text(workers.gpus)}")
            job = replace(job, keys=in_precision(keys, choice.precision))
            outcome = run_workers(job, workers, live)
    except EspanError as error:
        raise EspanError(f"{error}{_tidied(job)}") from error
    finally:
        live.close()
    if outcome["steps"] != keys.steps:
        raise EspanError(f"training ended after {outcome['steps']} of {keys.steps} steps")
    write_model_file(context.output, job.result())
    headline = f"loss {outcome['first_loss']:.3f} -> {outcome['last_loss']:.3f}"
    return {"headline": headline, "precision": job.precision, **outcome}


def run_workers(
    job: TrainJob, workers: Reservation, live: LiveProgress, *, check_bf16: bool = False
) -> dict[str, Any]:
    """Trains on Ray Train workers and returns what the first of them says in the end.

    Args:
        job: what to train.
        workers: what they reserve.
        live: shows their progress.
        check_bf16: bf16 was chosen without knowing the GPUs' type.

    Raises:
        NoBfloat16Error: `check_bf16`, and a GPU does not have it.
        EspanError: workers were lost more often than `max_failures`, or failed in a way that would recur.
    """
    import ray
    from ray.exceptions import RayError
    from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipelines.train.restarts import EndAtOnce, failure_config
    from pipelines.train.worker.loop import train_loop_per_worker
    from pipelines.train.worker.process_group import CheckedTorchConfig

    # Beside this process: a lost node must not take the queue along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = ray.remote(num_cpus=0, scheduling_strategy=here)(EventQueue).remote()
    on_gpu = workers.gpus > 0
    with _ray_train_folder() as folder:
        trainer = TorchTrainer(
            train_loop_per_worker,
            train_loop_config={"job": job, "events": events},
            torch_config=CheckedTorchConfig("nccl" if on_gpu else "gloo", needs_bf16=check_bf16),
            scaling_config=ScalingConfig(
                num_workers=job.keys.workers, use_gpu=on_gpu, resources_per_worker=workers.resources
            ),
            run_config=RunConfig(
                name=f"train-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                failure_config=failure_config(job.keys.max_failures, job.keys.max_preemptions),
                callbacks=[EndAtOnce()],
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            outcome = _fit(trainer, events, live).return_value
        except (TrainingFailedError, RayError) as error:
            raise _failure(error, job) from error
        finally:
            ray.kill(events)
    return dict(outcome)


def _fit(trainer: Any, events: Any, live: LiveProgress) -> Result:
    """Runs the trainer in a thread: this one shows events meanwhile, and Ctrl-C reaches it and not Ray."""
    import ray

    done: list[Result] = []
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            done.append(trainer.fit())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        for event in ray.get(events.take.remote()):
            live.show(event)
    if failed:
        raise failed[0]
    return done[0]


def _failure(error: Exception, job: TrainJob) -> EspanError:
    """Turns what Ray Train raises, a report of many lines, into one line, and keeps the report in a file."""
    from ray.train import WorkerGroupError

    final = getattr(error, "controller_failure", None)
    if isinstance(final, FinalFailure):
        return EspanError(final.line + (_kept(final.report, job.output) if final.report else ""))
    if isinstance(final, EspanError):  # what workers found before they began
        return final
    text = str(error)
    # The report ends with the traceback of a worker, and that with what happened.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    what = lines[-1] if lines else type(error).__name__
    if isinstance(error, WorkerGroupError):
        ranks = ", ".join(map(str, sorted(error.worker_failures)))
        limit = f"max_failures: {job.keys.max_failures}"
        what = f"workers ({ranks}) were lost more often than {limit} allows, the last time with: {what}"
    if switches := network_switches():
        what += f" ({', '.join(switches)} set)"
    return EspanError(f"training failed: {what}{_kept(text, job.output)}")


def _kept(report: str, output: str) -> str:
    """Writes the report, and returns where it is for the end of a line."""
    place = storage.join(output, FAILURE_FILE)
    try:
        storage.write_text_atomic(place, report)
    except OSError as error:  # a full disk, which may be what the report is about
        return f"; the report could not be written ({error})"
    return f"; the whole report is in {place}"


def _tidied(job: TrainJob) -> str:
    """Removes a half-written checkpoint, which the disk may be full of; returns what to add if it stays."""
    try:
        CheckpointStore(job.checkpoints).remove_unfinished()
    except OSError as error:
        return f"; unfinished checkpoints stay in {job.checkpoints} ({error})"
    return ""


@contextmanager
def _ray_train_folder() -> Iterator[str]:
    """Yields a folder for Ray Train's own records, which nothing needs: the workers write the checkpoints."""
    folder = tempfile.mkdtemp(prefix="espan-ray-train-")
    try:
        yield folder
    finally:
        shutil.rmtree(Path(folder), ignore_errors=True)
