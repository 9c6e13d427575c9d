"""What a training run really holds on a CPU: its tensors, counted while they live."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pipelines.prepare.shards import ShardReader
from pipelines.train.job import TrainJob
from pipelines.train.worker.batches import BatchPlan, RowOrder
from pipelines.train.worker.engine import Engine
from pipelines.train.worker.group import Group
from pipelines.train.worker.model import training_model
from pipelines.train.worker.step import Steps
from pipelines.train.worker_groups import WorkerGroups
from se_model.loss import causal_lm_loss

STEPS = 2
"""Moments appear in the first, and ZeRO-3 knows from the second on what to fetch."""


def allocated_at_most(action: Callable[[], object]) -> int:
    """Returns the most bytes that torch's allocator had given out at once, as this thread sees it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = action()
    del kept
    level = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


class Census(TorchDispatchMode):
    """Counts the bytes of the tensors that operations within make, whichever thread lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.level = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage not in self._seen:
                    self._seen[storage] = size = storage.nbytes()
                    weakref.finalize(storage, self._gone, size)
                    self.level += size
                    self.peak = max(self.peak, self.level)
        return results

    def _gone(self, size: int) -> None:
        self.level -= size


def held_by_training(group: Group, job: TrainJob) -> int:
    """Returns the peak of one worker's first steps under DeepSpeed; every worker of the group calls it."""
    with Census() as census:
        corpus = ShardReader(job.data)
        model = training_model(job, corpus.manifest)
        layout = WorkerGroups(group.size, job.keys.context_parallel)
        plan = BatchPlan(job.rows_per_step, job.keys.micro_batch_rows, layout.groups)
        engine = Engine(model, job.keys, workers=group.size, accumulation=plan.accumulation)
        packed = corpus.manifest.packing == "documents"
        order = RowOrder(len(corpus), job.seed)
        steps = Steps(job.keys, group, engine, corpus, plan, order, packed, job.seed)
        for step in range(1, STEPS + 1):
            steps.run(step)
    return census.peak


def held_by_plain_loop(job: TrainJob) -> int:
    """Returns the peak of a loop with torch's own AdamW: no DeepSpeed, nothing split."""
    corpus = ShardReader(job.data)
    model = training_model(job, corpus.manifest).train()
    # Loaded before: how a file is read is another matter.
    stored = {parameter.untyped_storage()._cdata: parameter.nbytes for parameter in model.parameters()}

    def train() -> object:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        for _ in range(STEPS):
            rows = torch.zeros(job.keys.micro_batch_rows, corpus.manifest.sequence_length, dtype=torch.int64)
            loss, _ = causal_lm_loss(model, rows)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return optimizer

    return sum(stored.values()) + allocated_at_most(train)
