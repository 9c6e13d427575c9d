"""What is known of a stage's model before it is loaded: its configuration, where that is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import assets, storage
from pipelines.model_configuration import CONFIG_FILE, read_configuration
from pipelines.model_files import is_place
from pipelines.models import resolve_model
from pipelines.stage import CheckContext

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from pipelines.train.stage import TrainStage
    from se_model.attentions import AttentionConfig


def model_configuration(stage: TrainStage, context: CheckContext) -> PreTrainedConfig | None:
    """Returns the configuration of what `stage` trains, or None while it is not on this machine."""
    if not isinstance(stage.model, str):
        from se_model.hybrid import Mamba2HybridConfig

        return Mamba2HybridConfig(**stage.model.new)
    if stage.model in context.earlier:
        # A tuned model is built as what it was tuned from.
        earlier = context.earlier[stage.model].stage
        return model_configuration(earlier, context) if isinstance(earlier, type(stage)) else None
    folder = _base_folder(stage.model)
    return None if folder is None else read_configuration(folder)


def skeleton(configuration: PreTrainedConfig, attention: AttentionConfig) -> PreTrainedModel:
    """Returns a transformers model without memory for its weights, with the attention attached."""
    import torch
    from transformers import AutoModelForCausalLM

    from se_model.attach import attach

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration)
    attach(model, attention)
    return model


def _base_folder(reference: str) -> Path | None:
    if assets.is_builtin(reference):
        return assets.builtin(reference)
    if not is_place(reference) or storage.is_remote(reference):
        return None
    base = resolve_model(reference, {}).base
    if base != reference:
        return _base_folder(base)
    folder = storage.local_path(reference)
    return folder if (folder / CONFIG_FILE).is_file() else None
