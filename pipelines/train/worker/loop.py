"""What every worker runs, in order: load, resume, step after step, leave the model behind."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.models.bos import begin_with
from pipelines.models.recurrences import check_recurrences, recurrences_in, recurrences_text
from pipelines.models.tokenizers import load_tokenizer
from pipelines.prepare.shards import Manifest, ShardReader
from pipelines.recipe.keys.needles import NEEDLES
from pipelines.system import storage
from pipelines.system.disk import explained_writes
from pipelines.system.precision import multiply_in_float32
from pipelines.system.surroundings import forget_launchers
from pipelines.train.failures import final_failure, restart_mends
from pipelines.train.job import MODEL_FOLDER, TrainJob
from pipelines.train.worker.batches import BatchPlan, RowOrder
from pipelines.train.worker.checkpoints import Checkpoint, CheckpointStore, TrainState, local_copy
from pipelines.train.worker.engine import Engine
from pipelines.train.worker.group import Group, ray_train_group, sharing_group
from pipelines.train.worker.metrics import METRICS_FILE, MetricsLog, read_metrics
from pipelines.train.worker.model import load_for, open_training, write_coverage
from pipelines.train.worker.preemptions import Preemptions
from pipelines.train.worker.sole_writer import sole_writer
from pipelines.train.worker.step import Steps
from pipelines.train.worker.universal_checkpoint import UNIVERSAL_FOLDER, universal_copy
from pipelines.train.worker_groups import WorkerGroups

Tell = Callable[[Mapping[str, Any]], None]


def train_loop_per_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ray Train's entry point: `config` holds a `TrainJob` and the handle of an `EventQueue` actor.

    Returns the first worker's summary.

    Raises:
        FinalFailure: what a restart of the workers would not fix. One worker's is enough: Ray Train ends the
            others, which may wait for it in an exchange.
    """
    forget_launchers()
    group = ray_train_group()
    events = config["events"]

    def tell(event: Mapping[str, Any]) -> None:
        if group.first:
            events.put.remote(dict(event))

    job: TrainJob = config["job"]
    preemptions = Preemptions()
    try:
        return train(job, group, tell, preemptions)
    except Exception as error:
        if restart_mends(error):
            preemptions.wait_for_the_end()
            raise
        raise final_failure(error, job.output) from error


def train(job: TrainJob, group: Group, tell: Tell, preemptions: Preemptions | None = None) -> dict[str, Any]:
    """Trains `job` on the workers of `group`, all of which call this, and returns a summary.

    A checkpoint is written every `checkpoint_every` steps, and when a node is announced to go away.

    Raises:
        EspanError: what would happen again after a restart; on every worker alike where one could have told
            the others.
    """
    stage = job.keys
    _use_cores(stage.resources.cpus)
    multiply_in_float32(group.device)
    layout = WorkerGroups(group.size, stage.context_parallel)
    plan = BatchPlan(job.rows_per_step, stage.micro_batch_rows, layout.groups)
    with ExitStack() as stack:
        group.agree(lambda: stack.enter_context(sole_writer(job.output)) if group.first else None)
        corpus = group.agree(lambda: ShardReader(job.data))
        store = CheckpointStore(job.checkpoints)
        checkpoint = group.gather(group.agree(lambda: store.newest() if group.first else None))[0]
        opened = group.agree(lambda: open_training(job, corpus.manifest))
        found, gpu = recurrences_in(opened.model), group.device.type == "cuda"
        group.agree(lambda: check_recurrences(found, stage.recurrence, gpu=gpu))
        if group.first:
            write_coverage(opened.model, job.output)
            if computed := recurrences_text(found, stage.recurrence, gpu=gpu):
                tell({"message": f"recurrences: {computed}"})
        model = load_for(opened, stage, group)
        engine = _engine(job, group, plan, model, checkpoint)
        done = checkpoint.state.step if checkpoint else 0
        nodes = len(set(group.gather(group.node)))
        tell({"at": done})

        metrics = stack.enter_context(_Metrics(job.output, done)) if group.first else None
        packed = corpus.manifest.packing == "documents"
        order = RowOrder(len(corpus), job.seed)
        sharing = stack.enter_context(sharing_group(group, layout))
        # So readers of the metrics can tell which steps were timed with another set of workers.
        shape = {
            "workers": group.size,
            "nodes": nodes,
            "gpus": group.size if group.device.type == "cuda" else 0,
            "context_parallel": stage.context_parallel,
        }
        # Choices made for a row that several workers share are not recorded.
        seeks = _holds_needles(corpus.manifest) and sharing is None
        tokenizer = group.agree(lambda: load_tokenizer(job.tokenizer)) if seeks else None
        steps = Steps(stage, group, engine, corpus, plan, order, packed, job.seed, sharing, tokenizer)
        for step in range(done + 1, stage.steps + 1):
            logged = step in (1, stage.steps) or step % stage.log_every == 0
            record = {**steps.run(step, logged=logged), **shape}
            if logged:
                tell(record)
                if metrics:
                    metrics.write(record)
            leaving = preemptions is not None and preemptions.announced()
            if leaving:
                tell({"message": f"a node is about to be taken away: writing a checkpoint of step {step}"})
            if leaving or step == stage.steps or step % stage.checkpoint_every == 0:
                if metrics:
                    metrics.publish()
                with explained_writes(store.written_to(step), engine.checkpoint_bytes()):
                    store.save(_state(job, plan, group, step), engine.save, group)
                if group.first:
                    store.prune(stage.keep_checkpoints)
        _leave_model(job, group, engine)
        return metrics.summary() if metrics else {}


def _holds_needles(manifest: Manifest) -> bool:
    """Returns whether some rows come from synthetic documents that test recall."""
    return any(source.source == NEEDLES and source.packed_tokens for source in manifest.sources)


def _use_cores(cpus: float | None) -> None:
    torch.set_num_threads(max(1, int(cpus or 1)))


def _engine(
    job: TrainJob, group: Group, plan: BatchPlan, model: nn.Module, checkpoint: Checkpoint | None
) -> Engine:
    """Returns the engine, in the state of `checkpoint` if there is one."""
    other_workers = checkpoint is not None and checkpoint.state.workers != group.size
    engine = Engine(
        model, job.keys, workers=group.size, accumulation=plan.accumulation, from_universal=other_workers
    )
    if checkpoint is None:
        return engine
    with local_copy(checkpoint.place, group) as folder:
        if other_workers:
            with universal_copy(folder, group) as universal:
                engine.load(universal, UNIVERSAL_FOLDER)
        else:
            engine.load(folder)
    return engine


def _state(job: TrainJob, plan: BatchPlan, group: Group, step: int) -> TrainState:
    return TrainState(
        step=step,
        tokens_seen=step * job.keys.tokens_per_step,
        rows_consumed=step * plan.rows_per_step,
        seed=job.seed,
        next_micro_batch=step * plan.micro_batches_per_step,
        workers=group.size,
        zero=job.keys.deepspeed.zero,
        precision=job.precision,
    )


def _leave_model(job: TrainJob, group: Group, engine: Engine) -> None:
    """Writes the trained model or adapter, and the tokenizer, below the stage's folder."""
    place = storage.join(job.output, MODEL_FOLDER)
    with tempfile.TemporaryDirectory(prefix="espan-model-") as scratch:
        with explained_writes(scratch):
            engine.save_model(Path(scratch))
        if group.first:
            with explained_writes(scratch):
                begin_with(load_tokenizer(job.tokenizer), job.bos).save_pretrained(scratch)
            with explained_writes(place):
                storage.upload_folder(scratch, place)
    group.barrier()


class _Metrics:
    """The first worker's metrics; for an object store they are uploaded with every checkpoint."""

    def __init__(self, output: str, done: int) -> None:
        self._output = output
        self._exit = ExitStack()
        remote = storage.is_remote(output)
        self._folder = (
            Path(self._exit.enter_context(tempfile.TemporaryDirectory()))
            if remote
            else storage.local_path(output)
        )
        place = storage.join(output, METRICS_FILE)
        if remote and storage.exists(place):
            storage.write_bytes_atomic(str(self._folder / METRICS_FILE), storage.read_bytes(place))
        self._log = self._exit.enter_context(MetricsLog(self._folder, resumed_step=done))
        self.write = self._log.write

    def publish(self) -> None:
        """Makes sure that everything written so far outlives this process."""
        self._log.flush()
        if storage.is_remote(self._output):
            storage.upload_folder(self._folder, self._output)

    def summary(self) -> dict[str, Any]:
        """Returns a summary of the metrics of all steps."""
        records = read_metrics(str(self._folder / METRICS_FILE))
        return {
            "steps": records[-1]["step"],
            "tokens": records[-1]["tokens_seen"],
            "first_loss": records[0]["loss"],
            "last_loss": statistics.fmean(record["loss"] for record in records[-10:]),
            "tokens_per_second": statistics.median(record["tokens_per_second"] for record in records),
            "memory_bytes": max(record["memory_bytes"] for record in records),
            **_late_retrieval(records),
        }

    def __enter__(self) -> _Metrics:
        return self

    def __exit__(self, *problem: object) -> None:
        self._exit.close()


_LATE = 0.75
"""Retrieval is summed up over the steps behind this part of the training."""


def _late_retrieval(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns means over the last quarter's steps in which needles were asked for; nothing without any."""
    late = [record for record in records if record["step"] > _LATE * records[-1]["step"]]
    asked = [record for record in late if "retrieval_asked" in record]
    means: dict[str, Any] = {}
    for name in ("asked", "not_asked", "chance", "distinct", "asked_by_head", "not_asked_by_head"):
        values = [record[f"retrieval_{name}"] for record in asked if f"retrieval_{name}" in record]
        if values:
            means[name] = _mean(values)
    return {"retrieval": means} if means else {}


def _mean(values: Sequence[Any]) -> Any:
    """Returns the mean of numbers, or of lists of them, entry by entry, leaving out what is None."""
    if isinstance(values[0], list):
        return [_mean(entries) for entries in zip(*values, strict=True)]
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else None
