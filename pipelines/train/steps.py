"""One optimizer step: the worker's micro-batches, the exchange of what they came to, the update."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.errors import EspanError
from pipelines.train.batches import BatchPlan, MicroBatch, RowOrder, Rows, model_input, target_count
from pipelines.train.engine import Engine
from pipelines.train.group import Group
from pipelines.train.stage import TrainStage
from se_model.attach import set_step
from se_model.span.statistics import record_selections

DROPOUT_STREAM = 0x64726F70
"""Keeps dropout apart from other random numbers drawn from the same seed."""


@dataclass(frozen=True)
class Steps:
    """Runs steps of one training; every worker has one.

    Attributes:
        packed: rows hold documents that must not see each other.
        seed: of dropout.
    """

    stage: TrainStage
    group: Group
    engine: Engine
    corpus: Rows
    plan: BatchPlan
    order: RowOrder
    packed: bool
    seed: int

    def run(self, step: int) -> dict[str, float]:
        """Runs step `step` (counted from 1) and returns its metrics, the same on every worker.

        Raises:
            EspanError: loss or gradients are not finite; the weights are those of the step before if it is
                the loss.
        """
        started = time.perf_counter()
        targets = target_count(self.corpus, self.plan.step_rows(self.order, step))
        own_loss = torch.zeros((), dtype=torch.float64, device=self.group.device)
        batches = self.plan.micro_batches(self.order, step, self.group.rank)
        with record_selections() as selections:
            for batch in batches:
                own_loss += self._micro_batch(batch, targets)
                if batch is not batches[-1]:
                    self.engine.finish_micro_batch()
        # Before the update, so that a loss that is not finite never reaches the weights.
        everyone = self.group.gather((own_loss.item(), peak_memory(self.group.device), selections.summary()))
        loss = sum(each[0] for each in everyone) / targets
        if not math.isfinite(loss):
            raise EspanError(
                f"step {step}: the loss is {loss}; lower learning_rate or lengthen schedule.warmup_steps"
            )
        learning_rate = self.stage.learning_rate * self.stage.schedule.factor(step, self.stage.steps)
        gradient_norm = self.engine.update(learning_rate)
        if not math.isfinite(gradient_norm):
            raise EspanError(
                f"step {step}: the gradient norm is {gradient_norm}; lower learning_rate or clip"
            )
        return {
            "step": step,
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "tokens_per_second": self.stage.tokens_per_step / (time.perf_counter() - started),
            "tokens_seen": step * self.stage.tokens_per_step,
            "memory_bytes": max(each[1] for each in everyone),
            **{f"retrieval_{name}": value for name, value in _means(each[2] for each in everyone).items()},
        }

    def _micro_batch(self, batch: MicroBatch, targets: int) -> torch.Tensor:
        """Adds one micro-batch's gradients; returns its summed loss, `[]`."""
        data = model_input(self.corpus, batch, self.packed)
        set_step(self.engine.model, batch.number)
        torch.manual_seed(dropout_seed(self.seed, batch.number))
        device = self.group.device
        loss_sum = self.engine.loss_sum(
            data.input_ids.to(device), None if data.cu_seqlens is None else data.cu_seqlens.to(device)
        )
        self.engine.backward(loss_sum, targets)
        return loss_sum.detach()


def dropout_seed(seed: int, number: int) -> int:
    """Returns the seed of torch's generator for micro-batch `number`, whichever worker runs it and when."""
    return int(np.random.SeedSequence([DROPOUT_STREAM, seed, number]).generate_state(1, np.uint64)[0])


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes that this worker has held: on its GPU, or without one as a process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _means(summaries: Iterable[Mapping[str, float]]) -> dict[str, float]:
    present = [summary for summary in summaries if summary]
    return (
        {name: sum(each[name] for each in present) / len(present) for name in present[0]} if present else {}
    )
