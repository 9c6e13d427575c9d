"""The attentions that a model can be given, by the name that a recipe calls them."""

from __future__ import annotations

from se_model.baselines import FullConfig, NoMemoryConfig, RandomConfig, S2Config, SlidingWindowConfig
from se_model.span import Attention, AttentionConfig, SpanConfig

_CONFIGS: tuple[type[AttentionConfig], ...] = (
    FullConfig,
    SpanConfig,
    SlidingWindowConfig,
    S2Config,
    NoMemoryConfig,
    RandomConfig,
)

ATTENTION_KINDS: dict[str, type[AttentionConfig]] = {config.kind: config for config in _CONFIGS}

__all__ = ["ATTENTION_KINDS", "Attention", "AttentionConfig"]
