"""The model as it goes into training: weights, what trains of them, and the attention they train with."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import nn

from pipelines import storage
from pipelines.errors import EspanError
from pipelines.models import load_model
from pipelines.prepare.shards import Manifest
from pipelines.train.job import TrainJob
from se_model import apply_hylora, attach, coverage
from se_model.attach import check_parallel

COVERAGE_FILE = "coverage.json"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def training_model(job: TrainJob, manifest: Manifest) -> nn.Module:
    """Returns the model that `job` trains, on the CPU; every worker gets the same.

    Raises:
        EspanError: it cannot be loaded, does not fit the data, or cannot be trained as asked.
    """
    stage = job.stage
    # New weights and new adapters are drawn from this generator.
    torch.manual_seed(job.seed)
    model = load_model(job.model, _DTYPES[stage.precision])
    words, rows = manifest.tokenizer.vocabulary_size, model.get_input_embeddings().num_embeddings
    if words > rows:
        raise EspanError(f"the data's tokenizer has {words} words, but {job.model.name} embeds only {rows}")
    try:
        if stage.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = (
            model.requires_grad_(True) if stage.hylora is None else apply_hylora(model, stage.hylora.build())
        )
        attached = attach(trained, stage.attention.build(job.seed))
        if stage.context_parallel > 1:
            check_parallel(attached)
        return attached
    except ValueError as error:
        raise EspanError(f"{job.model.name} cannot be trained as asked: {error}") from error


def write_coverage(model: nn.Module, output: str) -> None:
    """Writes what trains, per kind of parameter, to `coverage.json`."""
    kinds = {str(kind): asdict(row) for kind, row in coverage(model).kinds.items()}
    storage.write_json_atomic(
        storage.join(output, COVERAGE_FILE), {"format": "espan-coverage/1", "kinds": kinds}
    )
