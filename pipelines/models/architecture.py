"""What is known of a stage's model before it is loaded: its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.context import CheckContext
from pipelines.models.configuration import Described
from pipelines.models.files import configuration_folder
from pipelines.models.references import resolve_model
from pipelines.recipe.keys.train import TrainKeys

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from pipelines.recipe.keys.train import NewModel
    from se_model.attentions import AttentionConfig


def described_model(model: str | NewModel, context: CheckContext) -> Described | None:
    """Returns the model of the key `model` of a stage; None if that is unknown before the run.

    Raises:
        EspanError: the model cannot be obtained, or its config.json is not a JSON object.
    """
    if not isinstance(model, str):
        return Described.new(model.new)
    if model in context.earlier:
        # A tuned model is built as what it was tuned from.
        earlier = context.earlier[model].keys
        return described_model(earlier.model, context) if isinstance(earlier, TrainKeys) else None
    # Of a model in an object store or on the hub, config.json is downloaded, and nothing else.
    folder = configuration_folder(resolve_model(model, {}).base)
    return None if folder is None else Described.in_folder(folder)


def attached_skeleton(configuration: PreTrainedConfig, attention: AttentionConfig) -> PreTrainedModel:
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
