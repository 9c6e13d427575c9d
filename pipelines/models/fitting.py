"""From a recipe's keys to what `se_model` takes: attentions, and what HyLoRA trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.recipe.keys.attention import AttentionSection
from pipelines.recipe.keys.train import HyLora

if TYPE_CHECKING:
    from se_model.attentions import AttentionConfig
    from se_model.hylora import HyLoraConfig


def attention_config(keys: AttentionSection, seed: int) -> AttentionConfig:
    """Returns the attention for `se_model.attach`; `seed` decides what is drawn at random."""
    from se_model.attentions import ATTENTION_KINDS

    drawing = {"seed": seed} if keys.draws else {}
    return ATTENTION_KINDS[keys.kind](**keys.model_dump(exclude={"kind"}), **drawing)


def hylora_config(keys: HyLora) -> HyLoraConfig:
    """Returns the configuration for `se_model.apply_hylora`."""
    from se_model.hylora import HyLoraConfig

    return HyLoraConfig(**keys.model_dump())
