"""A tiny hybrid with an adapter on it, as a train stage leaves it, and a recipe that exports it."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.context import Context
from pipelines.models.references import ModelSource, write_model_file
from pipelines.models.tokenizers import load_tokenizer
from pipelines.recipe.keys.export import ExportKeys
from pipelines.recipe.parse import read_recipe
from se_model import HyLoraConfig, Mamba2HybridConfig, Mamba2HybridForCausalLM, apply_hylora

RECIPE = """
    name: small-8k
    seed: 3
    stages:
      tuned:
        train:
          data: {shards}
          model: {base}
          attention: {{kind: span, chunk_sizes: 64}}
          hylora: {{rank: 4, alpha: 8}}
          steps: 10
          tokens_per_step: 1024
          learning_rate: 1.0e-3
      release:
        export: {{model: {tuned}}}
    """


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole model and its tokenizer."""
    torch.manual_seed(0)
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
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("base")
    Mamba2HybridForCausalLM(config).save_pretrained(folder)
    load_tokenizer("builtin:tiny").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A train stage's folder whose adapter has moved every trainable tensor away from the base."""
    folder = tmp_path_factory.mktemp("tuned")
    model = apply_hylora(Mamba2HybridForCausalLM.from_pretrained(base), HyLoraConfig(rank=4, alpha=8))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "model", save_embedding_layers=False)
    load_tokenizer("builtin:tiny").save_pretrained(folder / "model")
    write_model_file(str(folder), ModelSource(str(base), adapter="./model", tokenizer="./model"))
    return folder


MakeContext = Callable[..., Context]


@pytest.fixture
def make_context(tmp_path: Path, base: Path, tuned: Path) -> MakeContext:
    """A context whose output is `tmp_path/release`."""

    def make() -> Context:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(textwrap.dedent(RECIPE).format(shards=tmp_path, base=base, tuned=tuned))
        output = tmp_path / "release"
        output.mkdir(exist_ok=True)
        return Context("release", str(output), 3, {}, str(tmp_path), read_recipe(recipe).as_dict())

    return make


@pytest.fixture
def make_stage(tuned: Path) -> Callable[..., ExportKeys]:
    """An export stage for the tuned model."""

    def make(**keys: Any) -> ExportKeys:
        return ExportKeys.model_validate({"model": str(tuned), **keys})

    return make
