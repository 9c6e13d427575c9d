"""A tiny hybrid that reads and writes bytes: words of books are none that `builtin:tiny` knows."""

from pathlib import Path

import pytest

from se_model import Mamba2HybridConfig, Mamba2HybridForCausalLM
from tests.pipelines.evaluate.language_model.tiny import SPECIAL, lively, train_tokenizer


@pytest.fixture(scope="session")
def byte_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte-model")
    tokenizer = train_tokenizer(**SPECIAL)
    config = Mamba2HybridConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        attn_layer_indices=[1],
        state_size=8,
        mamba_head_dim=16,
        num_attention_heads=2,
        head_dim=16,
        rotary_dim=8,
    )
    lively(Mamba2HybridForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
