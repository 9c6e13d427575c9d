"""Span-Expanded Attention for hybrid language models: the operator, the model, what trains.

Importing this package registers Mamba-2-Hybrid with transformers' Auto classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# First, and not lazily: `attach` is a folder too, and Python binds a submodule's name in its package when it
# is first imported. Here that has happened before the function takes the name.
from se_model.attach import attach, detach, get_step, set_step
from se_model.hybrid import Mamba2HybridConfig, Mamba2HybridForCausalLM
from se_model.span import SpanConfig, se_attention, select_blocks

if TYPE_CHECKING:
    from se_model.attach.trainer import TrainerSteps
    from se_model.hylora import HyLoraConfig, apply_hylora, coverage, load_adapter

__all__ = [
    "HyLoraConfig",
    "Mamba2HybridConfig",
    "Mamba2HybridForCausalLM",
    "SpanConfig",
    "TrainerSteps",
    "apply_hylora",
    "attach",
    "coverage",
    "detach",
    "get_step",
    "load_adapter",
    "se_attention",
    "select_blocks",
    "set_step",
]

# Imported on first use: peft and transformers' trainer take seconds, and most of the package does without.
_LAZY = dict.fromkeys(("HyLoraConfig", "apply_hylora", "coverage", "load_adapter"), "se_model.hylora")
_LAZY["TrainerSteps"] = "se_model.attach.trainer"


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
