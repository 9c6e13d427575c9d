"""Mamba-2-Hybrid (the state-spaces/mamba2attn family) as a transformers model."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from se_model.hybrid.configuration import Mamba2HybridConfig
from se_model.hybrid.modelling import Mamba2HybridForCausalLM, Mamba2HybridModel

AutoConfig.register("mamba2_hybrid", Mamba2HybridConfig, exist_ok=True)
AutoModel.register(Mamba2HybridConfig, Mamba2HybridModel, exist_ok=True)
AutoModelForCausalLM.register(Mamba2HybridConfig, Mamba2HybridForCausalLM, exist_ok=True)

__all__ = ["Mamba2HybridConfig", "Mamba2HybridForCausalLM", "Mamba2HybridModel"]
