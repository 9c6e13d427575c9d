"""One optimizer step: the worker's micro-batches, the exchange of their results, the update."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.errors import EspanError, one_line
from pipelines.needles.find import cases_in
from pipelines.recipe.keys.train import TrainKeys
from pipelines.train.worker.batches import (
    BatchPlan,
    MicroBatch,
    ModelInput,
    RowOrder,
    Rows,
    model_input,
    target_count,
)
from pipelines.train.worker.engine import Engine
from pipelines.train.worker.group import Group
from pipelines.train.worker_groups import WorkerGroups
from se_model.attach import set_step
from se_model.span.cases import Cases
from se_model.span.hits import Hits
from se_model.span.statistics import record_selections

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from se_model.parallel import ContextParallelGroup, SequenceShard

DROPOUT_STREAM = 0x64726F70
"""Keeps dropout apart from other random numbers drawn from the same seed."""


@dataclass(frozen=True)
class Steps:
    """Runs steps of one training; every worker has one.

    Attributes:
        packed: rows hold documents that must not see each other.
        seed: of dropout.
        sharing: the workers that share this worker's rows; None where it has rows of its own.
        tokenizer: of rows that hold needles, which are looked for with it; None where none are looked for.
    """

    stage: TrainKeys
    group: Group
    engine: Engine
    corpus: Rows
    plan: BatchPlan
    order: RowOrder
    packed: bool
    seed: int
    sharing: ContextParallelGroup | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def layout(self) -> WorkerGroups:
        """Who shares rows with whom."""
        return WorkerGroups(self.group.size, 1 if self.sharing is None else self.sharing.size)

    def run(self, step: int, *, logged: bool = False) -> dict[str, Any]:
        """Runs step `step` (counted from 1) and returns its metrics, the same on every worker.

        Of a step that is `logged` they say how often the needles that are asked for are retrieved.

        Raises:
            EspanError: loss or gradients are not finite; the weights are those of the step before if it is
                the loss.
        """
        started = time.perf_counter()
        targets = target_count(self.corpus, self.plan.step_rows(self.order, step))
        own_loss = torch.zeros((), dtype=torch.float64, device=self.group.device)
        batches = self.plan.micro_batches(self.order, step, self.layout.group_of(self.group.rank))
        with record_selections() as selections:
            for batch in batches:
                if logged and self.tokenizer is not None:
                    selections.ask(partial(self._asked_in, batch, self.tokenizer))
                own_loss += self._micro_batch(batch, targets)
                if batch is not batches[-1]:
                    self.engine.finish_micro_batch()
        # Before the update, so that a loss that is not finite never reaches the weights.
        everyone = self.group.gather(
            (own_loss.item(), peak_memory(self.group.device), selections.reach(), selections.hits())
        )
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
            **_retrieval(_means(each[2] for each in everyone)),
            **_retrieval(Hits.together(each[3] for each in everyone).means()),
        }

    def _asked_in(self, batch: MicroBatch, tokenizer: PreTrainedTokenizerBase) -> Cases:
        rows = [self.corpus.row(index) for index in batch.rows]
        return cases_in(tokenizer, rows, joined=self.packed)

    def _micro_batch(self, batch: MicroBatch, targets: int) -> torch.Tensor:
        """Adds one micro-batch's gradients; returns the summed loss of what this worker holds of it, `[]`.

        Raises:
            EspanError: the model does not take the micro-batch (packed documents, say).
        """
        data = model_input(self.corpus, batch, self.packed)
        set_step(self.engine.model, batch.number)
        place = self.layout.position_of(self.group.rank)
        torch.manual_seed(dropout_seed(self.seed, batch.number, place))
        device = self.group.device
        try:
            loss_sum = self.engine.loss_sum(data.input_ids.to(device), data.documents, self._shard(data))
        except ValueError as error:
            # How models and attentions refuse an input.
            refusal = one_line(error)
            raise EspanError(f"the model refuses micro-batch {batch.number}: {refusal}") from error
        self.engine.backward(loss_sum, targets)
        return loss_sum.detach()

    def _shard(self, data: ModelInput) -> SequenceShard | None:
        if self.sharing is None:
            return None
        from se_model.parallel import SequenceShard

        return SequenceShard.of(
            self.sharing,
            data.input_ids.shape[1],
            data.documents,
            chunk_multiple=lcm(*self.stage.attention.chunks),
        )


def dropout_seed(seed: int, number: int, place: int = 0) -> int:
    """Returns the seed of torch's generator for micro-batch `number`, whichever group runs it and when.

    Each `place` in a context-parallel group drops on its own: its tokens are others, and one mask repeated
    in every part of a row would be no dropout of the row. So with dropout, and only then, the losses depend
    on `context_parallel`; without it nothing is drawn from this seed.
    """
    words = [DROPOUT_STREAM, seed, number, place]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


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


def _retrieval(means: Mapping[str, Any]) -> dict[str, Any]:
    return {f"retrieval_{name}": value for name, value in means.items()}
