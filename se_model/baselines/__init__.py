"""The attentions that span-expanded attention is compared with, under the same signature."""

from se_model.baselines.full import FullConfig, full_attention
from se_model.baselines.no_memory import NoMemoryConfig
from se_model.baselines.random_memory import RandomConfig, random_memory_attention
from se_model.baselines.s2 import S2Config, s2_attention
from se_model.baselines.window import SlidingWindowConfig, sliding_window_attention

__all__ = [
    "FullConfig",
    "NoMemoryConfig",
    "RandomConfig",
    "S2Config",
    "SlidingWindowConfig",
    "full_attention",
    "random_memory_attention",
    "s2_attention",
    "sliding_window_attention",
]
