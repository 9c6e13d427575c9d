"""A training run without a word, what its metrics say, and the same training as a plain loop."""

from typing import Any

import torch

from pipelines.prepare.shards import ShardReader
from pipelines.train.job import TrainJob
from pipelines.train.worker.batches import BatchPlan, RowOrder, model_input, target_count
from pipelines.train.worker.engine import decay_groups
from pipelines.train.worker.group import Group
from pipelines.train.worker.loop import train
from pipelines.train.worker.metrics import read_metrics
from pipelines.train.worker.model import training_model
from se_model.attach import set_step
from se_model.loss import causal_lm_loss


def train_silently(group: Group, job: TrainJob) -> dict[str, Any]:
    return train(job, group, lambda event: None)


def metrics(job: TrainJob, *names: str) -> torch.Tensor:
    records = read_metrics(f"{job.output}/metrics.jsonl")
    return torch.tensor([[record[name] for name in names] for record in records], dtype=torch.float64)


def plain_loop(job: TrainJob) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradient norm per step, and the weights in the end, with torch alone."""
    stage, corpus = job.keys, ShardReader(job.data)
    model = training_model(job, corpus.manifest).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(decay_groups(trainable, stage.weight_decay), betas=stage.betas)
    plan, order = BatchPlan(job.rows_per_step, stage.micro_batch_rows, 1), RowOrder(len(corpus), job.seed)
    rows = []
    for step in range(1, stage.steps + 1):
        targets = target_count(corpus, plan.step_rows(order, step))
        total = torch.zeros(())
        for batch in plan.micro_batches(order, step, 0):
            data = model_input(corpus, batch, packed=True)
            set_step(model, batch.number)
            total = total + causal_lm_loss(model, data.input_ids, cu_seqlens=data.documents)[0]
        optimizer.zero_grad()
        (total / targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable, stage.clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * stage.schedule.factor(step, stage.steps)
        optimizer.step()
        rows.append([(total / targets).item(), norm.item()])
    return torch.tensor(rows, dtype=torch.float64), dict(model.state_dict())
