"""Parameter-efficient fine-tuning of hybrid models: what trains, and the proof that it does."""

from se_model.hylora.apply import apply_hylora, check_kinds
from se_model.hylora.config import HyLoraConfig
from se_model.hylora.coverage import Coverage, coverage
from se_model.hylora.shared import load_adapter

__all__ = ["Coverage", "HyLoraConfig", "apply_hylora", "check_kinds", "coverage", "load_adapter"]
