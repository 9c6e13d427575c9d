"""Rows packed by document are refused before anything runs where a layer would run across documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import RecipeError
from pipelines.models.tokenizers import load_tokenizer
from pipelines.run.plan import plan_recipe
from pipelines.run.runner import run_recipe
from tests.pipelines.train.conftest import write_corpus
from tests.se_model.tiny_models import CONFIGS, UNKNOWN, tiny_model

PREPARE = """
  corpus:
    prepare:
      sources: [{{path: {folder}/text.txt}}]
      tokenizer: builtin:tiny
      sequence_length: 64
      packing: {packing}
"""
TRAIN = """
  tuned:
    train:
      data: {data}
      model: {folder}/model
      attention: {{kind: span, chunk_sizes: [32], block_size: 8, top_k: 2}}
      hylora: {{rank: 4, alpha: 8, variant: {variant}}}
      steps: 2
      tokens_per_step: 128
      learning_rate: 1.0e-3
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a recipe that tunes a tiny model of an architecture, whose words are those of the tokenizer."""
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over a lazy dog. " * 99)

    def write_recipe(architecture: str, packing: str, data: str = "corpus", variant: str = "lora+") -> Path:
        monkeypatch.setattr(CONFIGS[architecture], "vocab_size", len(load_tokenizer("builtin:tiny")))
        tiny_model(architecture).save_pretrained(tmp_path / "model")
        prepare = PREPARE.format(folder=tmp_path, packing=packing) if data == "corpus" else ""
        path = tmp_path / "recipe.yaml"
        head = f"name: packing\nworkspace: {tmp_path / 'run'}\nstages:"
        path.write_text(head + prepare + TRAIN.format(folder=tmp_path, data=data, variant=variant))
        return path

    return write_recipe


def test_a_hybrid_that_runs_across_documents_is_refused_with_its_first_layer_and_the_key(
    write: Write,
) -> None:
    with pytest.raises(RecipeError) as refusal:
        plan_recipe(write(UNKNOWN, "documents"))
    assert refusal.match(
        r"tuned\.train\.data: its rows are packed by document: MiniMaxForCausalLM would carry state .*"
        r"\(first: layers\.0\.self_attn\); set packing: concatenate in stage 'corpus'"
    )
    assert len(refusal.value.problems) == 1


def test_a_folder_of_shards_is_judged_by_its_manifest(write: Write, tmp_path: Path) -> None:
    for packing in ("documents", "concatenate"):
        write_corpus(tmp_path / packing, packing=packing)
    with pytest.raises(RecipeError, match="set packing: concatenate in the stage that prepared it"):
        plan_recipe(write(UNKNOWN, "", str(tmp_path / "documents")))
    plan_recipe(write(UNKNOWN, "", str(tmp_path / "concatenate")))


@pytest.mark.parametrize(
    ("architecture", "packing"),
    [(UNKNOWN, "concatenate"), *((name, "documents") for name in ("bamba", "llama", "mamba2_hybrid"))],
)
def test_what_the_architecture_takes_passes(write: Write, architecture: str, packing: str) -> None:
    assert len(plan_recipe(write(architecture, packing)).stages) == 2


def test_layers_that_should_train_and_are_not_there_are_refused_with_line_and_key(write: Write) -> None:
    recipe = write("llama", "documents", variant="hylora")
    for start in (plan_recipe, run_recipe):  # neither begins with the corpus
        with pytest.raises(RecipeError) as refusal:
            start(recipe)
        assert refusal.match(
            r"recipe.yaml:\d+: stages.tuned.train.hylora.variant: hylora trains 1-D convolutions, but "
            r"LlamaForCausalLM has none; for a model without convolutions use variant 'lora\+'"
        )


def test_a_configuration_that_no_model_can_be_built_from_is_refused(write: Write, tmp_path: Path) -> None:
    recipe = write("llama", "documents")
    config = tmp_path / "model" / "config.json"
    rope = {"rope_parameters": {"rope_type": "of a later version", "rope_theta": 1e4, "factor": 2.0}}
    config.write_text(json.dumps(json.loads(config.read_text()) | rope))
    with pytest.raises(
        RecipeError, match=r"tuned.train.model: its config.json describes no model \(KeyError"
    ):
        plan_recipe(recipe)
