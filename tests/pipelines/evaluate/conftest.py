"""A tiny hybrid on disk and a tiny held-out corpus."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.models.tokenizers import load_tokenizer, tokenizer_hash
from pipelines.prepare.shards import Manifest, TokenizerEntry, split_folder, write_manifest, write_shard
from se_model import Mamba2HybridConfig, Mamba2HybridForCausalLM

LENGTH = 96


def tiny_model(seed: int = 0) -> Mamba2HybridForCausalLM:
    torch.manual_seed(seed)
    config = Mamba2HybridConfig(
        vocab_size=len(load_tokenizer("builtin:tiny")),
        hidden_size=32,
        num_hidden_layers=3,
        attn_layer_indices=[1],
        state_size=8,
        mamba_head_dim=16,
        num_attention_heads=2,
        head_dim=16,
        rotary_dim=8,
        initializer_range=0.5,
    )
    return Mamba2HybridForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model() -> Mamba2HybridForCausalLM:
    return tiny_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, model: Mamba2HybridForCausalLM) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    load_tokenizer("builtin:tiny").save_pretrained(folder)
    return folder


def _write_shards(folder: Path, doc_lengths: list[list[int]], packing: str = "documents") -> np.ndarray:
    """Writes rows of random tokens and returns them: [rows, LENGTH]."""
    tokens = np.random.default_rng(7).integers(0, 200, (len(doc_lengths), LENGTH)).astype(np.int32)
    tokenizer = load_tokenizer("builtin:tiny")
    entry = TokenizerEntry(
        reference="builtin:tiny",
        sha256=tokenizer_hash(tokenizer),
        vocabulary_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    shard = write_shard(str(folder), 0, tokens, doc_lengths)
    write_manifest(
        str(folder),
        Manifest(
            split="holdout",
            packing=packing,
            sequence_length=LENGTH,
            rows=len(tokens),
            tokens=tokens.size,
            shards=(shard,),
            tokenizer=entry,
            sources=(),
            seed=0,
            recipe_hash="",
        ),
    )
    return tokens


@pytest.fixture
def write_shards() -> Callable[..., np.ndarray]:
    return _write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with five held-out rows, each one document."""
    folder = tmp_path_factory.mktemp("corpus")
    _write_shards(Path(split_folder(str(folder), "holdout")), [[LENGTH]] * 5)
    return folder
