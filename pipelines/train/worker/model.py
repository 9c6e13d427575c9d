"""The model as it goes into training: weights, what trains of them, and the attention they train with."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from pipelines.errors import EspanError
from pipelines.models.fitting import attention_config, hylora_config
from pipelines.models.loading import Opened, open_base
from pipelines.models.weights.adapted import AdaptedWeights, draw_updates
from pipelines.prepare.shards import Manifest
from pipelines.recipe.keys.train import TrainKeys
from pipelines.system import storage
from pipelines.system.precision import torch_dtype
from pipelines.train.job import TrainJob
from pipelines.train.worker.group import Group
from pipelines.train.worker.sharded_loading import load_sharded
from se_model import apply_hylora, attach, coverage
from se_model.attach import check_parallel

COVERAGE_FILE = "coverage.json"


def training_model(job: TrainJob, manifest: Manifest) -> nn.Module:
    """Returns the model that `job` trains, whole, on the CPU; every worker gets the same.

    Raises:
        EspanError: it cannot be loaded, does not fit the data, or cannot be trained as asked.
    """
    return open_training(job, manifest).load()


def open_training(job: TrainJob, manifest: Manifest) -> Opened:
    """Opens the model that `job` trains: all but its weights are there, new adapters included.

    Raises:
        EspanError: as `training_model`.
    """
    stage = job.keys
    opened = open_base(job.model, torch_dtype(job.precision))
    model: Any = opened.model
    words, rows = manifest.tokenizer.vocabulary_size, model.get_input_embeddings().num_embeddings
    if words > rows:
        raise EspanError(f"the data's tokenizer has {words} words, but {job.model.name} embeds only {rows}")
    try:
        if stage.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if stage.hylora is not None:
            model = apply_hylora(model, hylora_config(stage.hylora))
            opened = Opened(model, AdaptedWeights(opened.weights))
        else:
            model.requires_grad_(True)
        attach(model, attention_config(stage.attention, job.seed), recurrence=stage.recurrence)
        if stage.context_parallel > 1:
            check_parallel(model)
    except ValueError as error:
        raise EspanError(f"{job.model.name} cannot be trained as asked: {error}") from error
    # New weights and new adapters are drawn from this generator.
    torch.manual_seed(job.seed)
    if stage.hylora is not None:
        draw_updates(model)
    return opened


def load_for(opened: Opened, stage: TrainKeys, group: Group) -> nn.Module:
    """Returns the opened model with its weights: whole on the worker's device, or under ZeRO-3 its share.

    Every worker calls it.

    Raises:
        EspanError: on every worker alike, if a weight cannot be read.
    """
    if stage.deepspeed.zero == 3:
        return load_sharded(opened, stage, group)
    return group.agree(lambda: opened.load(group.device))


def write_coverage(model: nn.Module, output: str) -> None:
    """Writes what trains, per kind of parameter, to `coverage.json`."""
    kinds = {str(kind): asdict(row) for kind, row in coverage(model).kinds.items()}
    storage.write_json_atomic(
        storage.join(output, COVERAGE_FILE), {"format": "espan-coverage/1", "kinds": kinds}
    )
