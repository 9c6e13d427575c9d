"""How much memory a worker will need, from sizes alone: coarse, meant to refuse what cannot fit by far."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import assets, storage
from pipelines.stage import CheckContext

if TYPE_CHECKING:
    from pipelines.train.stage import TrainStage

PROCESS_BYTES = 600 << 20
"""Python with torch, Ray, transformers and DeepSpeed, before any model."""

_ACTIVATIONS_PER_LAYER = 32
"""Numbers kept per token and layer, as multiples of the hidden size; measured with Mamba-2 layers."""

_LOGIT_TOKENS = 1024  # se_model.loss computes the logits of so many tokens at a time
_LOGIT_COPIES = 4  # logits, their softmax, and the gradients of both


@dataclass(frozen=True)
class Sizes:
    """What of a model decides how much memory it needs."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int


def local_training() -> bool:
    """Says whether workers will share this machine's main memory: no cluster to connect to and no GPU."""

    from pipelines.cluster_session import in_ray_job

    return not (os.environ.get("RAY_ADDRESS") or in_ray_job() or glob("/dev/nvidia[0-9]*"))


def worker_bytes(stage: TrainStage, sizes: Sizes, sequence_length: int) -> int:
    """Returns about how many bytes one worker holds at its peak."""
    weight = 2 if stage.precision == "bf16" else 4
    trained = sizes.parameters
    if stage.hylora is not None:
        low_rank = 16 * stage.hylora.rank * sizes.hidden * sizes.layers
        trained = min(trained, sizes.vocabulary * sizes.hidden + low_rank)
    zero, workers = stage.deepspeed.zero, stage.workers
    weights = sizes.parameters * weight / (workers if zero == 3 else 1)
    gradients = trained * weight / (workers if zero >= 2 else 1)
    optimizer = trained * 12 / workers  # fp32 weights and the two moments of Adam
    tokens = stage.micro_batch_rows * sequence_length // stage.context_parallel
    layer = tokens * sizes.hidden * _ACTIVATIONS_PER_LAYER * weight
    kept = tokens * sizes.hidden * sizes.layers * 4 + layer
    activations = kept if stage.activation_checkpointing else layer * sizes.layers
    logits = min(tokens, _LOGIT_TOKENS) * sizes.vocabulary * 4 * _LOGIT_COPIES
    return int(PROCESS_BYTES + weights + gradients + optimizer + activations + logits)


def model_sizes(stage: TrainStage, context: CheckContext) -> Sizes | None:
    """Returns the sizes of the model that `stage` trains, or None while its files are not on this machine."""
    if not isinstance(stage.model, str):
        return _new_sizes(stage.model.new)
    if stage.model in context.earlier:
        # A tuned model has the sizes of what it was tuned from, to within its adapter.
        earlier = context.earlier[stage.model].stage
        return model_sizes(earlier, context) if isinstance(earlier, type(stage)) else None
    builtin = assets.is_builtin(stage.model)
    folder = assets.builtin(stage.model) if builtin else storage.local_path(stage.model)
    return _folder_sizes(folder)


def _new_sizes(configuration: Mapping[str, Any]) -> Sizes:
    import torch

    from se_model.hybrid import Mamba2HybridConfig, Mamba2HybridForCausalLM

    config = Mamba2HybridConfig(**configuration)
    with torch.device("meta"):
        parameters = sum(each.numel() for each in Mamba2HybridForCausalLM(config).parameters())
    return Sizes(parameters, config.hidden_size, config.num_hidden_layers, config.vocab_size)


def _folder_sizes(folder: Path) -> Sizes | None:
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        return None
    config = storage.read_json(str(folder / "config.json"))
    try:
        hidden, layers, words = (config[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size"))
    except KeyError:
        return None
    return Sizes(sum(_elements(file) for file in files), hidden, layers, words)


def _elements(file: Path) -> int:
    """Returns how many numbers a safetensors file holds, from its header (8 bytes of length, then JSON)."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
