"""What is known of a stage's model before it is loaded: its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.model_configuration import read_configuration
from pipelines.model_files import configuration_folder
from pipelines.models import resolve_model
from pipelines.stage import CheckContext

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from pipelines.train.stage import TrainStage
    from se_model.attentions import AttentionConfig


def model_configuration(stage: TrainStage, context: CheckContext) -> PreTrainedConfig | None:
    """Returns the configuration of what `stage` trains; None where nothing says it before the run."""
    if not isinstance(stage.model, str):
        from se_model.hybrid import Mamba2HybridConfig

        return Mamba2HybridConfig(**stage.model.new)
    if stage.model in context.earlier:
        # A tuned model is built as what it was tuned from.
        earlier = context.earlier[stage.model].stage
        return model_configuration(earlier, context) if isinstance(earlier, type(stage)) else None
    return reference_configuration(stage.model)


def reference_configuration(reference: str) -> PreTrainedConfig | None:
    """Returns the configuration of a model that is no stage; None where its folder holds none.

    Of a model in an object store or on the hub, config.json is downloaded, and nothing else.

    Raises:
        EspanError: the model is not to be had, or its config.json cannot be read.
    """
    folder = configuration_folder(resolve_model(reference, {}).base)
    return None if folder is None else read_configuration(folder)


def skeleton(configuration: PreTrainedConfig, attention: AttentionConfig) -> PreTrainedModel:
    """Returns a transformers model without memory for its weights, with the attention attached.

    Raises:
        ValueError: it is no causal language model, or does not let its attention be replaced.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from se_model.attach import attach

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration)
    attach(model, attention)
    return model
