"""Writes a model, its adapter folded in, as one ordinary checkpoint, with one tensor in memory at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipelines.models.configuration import read_configuration
from pipelines.models.files import configuration_folder, local_folder
from pipelines.models.loading import load_model, open_base, quiet_transformers
from pipelines.models.references import ModelSource
from pipelines.models.tokenizers import load_tokenizer
from pipelines.models.weights.merged import MergedWeights
from pipelines.models.weights.skeleton import skeleton
from pipelines.models.weights.streamed import units
from pipelines.models.weights.tensors import Weights
from pipelines.models.weights.write import NotTensorByTensor, plan_files, write_files, write_settings
from pipelines.system import storage
from pipelines.system.progress import Progress
from pipelines.system.reserved_tasks import PROCESS_BYTES, give_memory_back, run_reserved

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def write_merged(source: ModelSource, folder: Path, dtype: torch.dtype | None, whole: bool = False) -> None:
    """Writes the merged checkpoint into a local folder; merged in float32, each number rounded once.

    Args:
        source: the model; without an adapter it is written as it is.
        folder: where to.
        dtype: of the weights; None for the type that each tensor of the base model is stored in.
        whole: load the whole model, in float32, for adapters that cannot be merged otherwise.

    Raises:
        NotTensorByTensor: it can only be done with `whole`.
        EspanError: the model cannot be read.
    """
    if whole:
        load_model(source, merge=True).to(dtype or stored_dtype(source)).save_pretrained(folder)
        return
    opened = open_base(source, torch.float32)
    model, weights = opened.model, opened.weights
    if source.adapter is not None:
        weights = MergedWeights(model, weights, local_folder(source.adapter), dtype)
    types = _types(model, weights, dtype)
    shapes = model.state_dict()
    with quiet_transformers():
        files = plan_files(
            model, {name: torch.empty(shapes[name].shape, dtype=types[name], device="meta") for name in types}
        )
        write_files(model, files, lambda name: weights.read(name).to(types[name]), folder)
        write_settings(model, folder, _main(model, types))


def stored_dtype(source: ModelSource) -> torch.dtype:
    """Returns the type in which most of the base model's numbers are stored."""
    opened = open_base(source, torch.float32)
    return _main(opened.model, _types(opened.model, opened.weights, None))


def merge_bytes(source: ModelSource, forward_tokens: int = 0) -> tuple[int, int]:
    """Returns the memory that a merge needs, tensor by tensor and as a whole, in bytes.

    Only the configuration of the base is looked at.

    Args:
        source: the model.
        forward_tokens: tokens that are also run through the model, layer by layer; 0 for none.
    """
    model = _outline(source)
    sizes = [parameter.numel() for parameter in model.parameters()]
    layer = max(sum(each.numel() for _, _, each in unit.parameters()) for unit in units(model))
    logits = forward_tokens * model.config.get_text_config().vocab_size
    # Of the largest tensor: as stored, in float32, its update, and rounded. Of logits: expected, found, and
    # what the loss of neither needs but the head makes on the way.
    one_by_one = 4 * max(layer, 4 * max(sizes)) + 4 * 4 * logits
    return PROCESS_BYTES + one_by_one, PROCESS_BYTES + 3 * 4 * sum(sizes) + 4 * 4 * logits


def loaded_bytes(source: ModelSource, dtype: torch.dtype) -> int:
    """Returns the main memory of a process that loads `source`, merged, and runs a few rows, in bytes."""
    parameters = sum(parameter.numel() for parameter in _outline(source).parameters())
    return PROCESS_BYTES + int(1.25 * parameters * dtype.itemsize)


def merge_into(source: ModelSource, place: str, label: str, progress: Progress) -> None:
    """Writes the merged checkpoint and its tokenizer below `place`, in a task on the cluster.

    Raises:
        EspanError: the model cannot be read, or there is too little memory.
    """
    needed, whole = merge_bytes(source)
    try:
        run_reserved(_merge_into, source, place, False, memory=needed, label=label, progress=progress)
    except NotTensorByTensor as reason:
        progress.message(f"{label}: {reason}: the whole model is loaded to merge it")
        run_reserved(_merge_into, source, place, True, memory=whole, label=label, progress=progress)


def configuration_of(source: ModelSource) -> PreTrainedConfig:
    """Returns the configuration of a model, of which only config.json is read."""
    folder = configuration_folder(source.base) or local_folder(source.base)
    with quiet_transformers():
        return read_configuration(folder)


def _outline(source: ModelSource) -> PreTrainedModel:
    """Returns the skeleton of a model, of which only config.json is read."""
    configuration = configuration_of(source)
    with quiet_transformers():
        model = skeleton(configuration, torch.float32)
    model.tie_weights()
    return model


def _merge_into(source: ModelSource, place: str, whole: bool) -> None:
    give_memory_back()
    with tempfile.TemporaryDirectory(prefix="espan-base-") as scratch:
        write_merged(source, Path(scratch), None, whole)
        if source.tokenizer:
            load_tokenizer(source.tokenizer).save_pretrained(scratch)
        storage.upload_folder(scratch, place)


def _types(model: PreTrainedModel, weights: Weights, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """Returns the type in which each tensor is written, tied ones under their first name."""
    parameters = dict(model.named_parameters())
    alias = {name for name, _ in model.named_parameters(remove_duplicate=False)} - parameters.keys()
    stored = {name: weights.dtype(name) for name in model.state_dict() if name not in alias}
    return {name: dtype if dtype and kind.is_floating_point else kind for name, kind in stored.items()}


def _main(model: PreTrainedModel, types: dict[str, torch.dtype]) -> torch.dtype:
    counts: dict[torch.dtype, int] = {}
    for name, tensor in model.state_dict().items():
        if name in types and types[name].is_floating_point:
            counts[types[name]] = counts.get(types[name], 0) + tensor.numel()
    return max(counts, key=lambda kind: counts[kind])
