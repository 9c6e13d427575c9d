"""Rows, layers and workers that cannot share a row are refused in one line, before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.context import CheckContext
from pipelines.errors import InvalidKeyError, RecipeError
from pipelines.models.architecture import attached_skeleton
from pipelines.recipe.keys.train import TrainKeys
from pipelines.run.plan import plan_recipe
from pipelines.train.check import check, plan
from pipelines.train.plan.exchange import exchanged
from pipelines.train.plan.memory.count import Counted, Rows
from se_model.attach import attention_layers
from se_model.baselines import FullConfig
from se_model.hybrid import Mamba2HybridConfig
from se_model.parallel.formula import Heads, Share, full_attention, state_space
from tests.pipelines.train.conftest import SPAN, TINY, write_corpus
from tests.se_model.tiny_models import CONFIGS, UNKNOWN, tiny_model


def stage_of(corpus: Path, **changed: Any) -> TrainKeys:
    keys: dict[str, Any] = {
        "data": str(corpus),
        "model": {"new": TINY},
        "attention": SPAN,
        "steps": 2,
        "tokens_per_step": 1536,
        "learning_rate": 1e-3,
    }
    return TrainKeys.model_validate(keys | changed)


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    return CheckContext("tuned", str(tmp_path / "tuned"), 0, str(tmp_path), {})


@pytest.mark.parametrize(
    ("workers", "ranks", "nearest"), [(6, 4, 3), (4, 3, 2), (2, 4, 2), (1, 2, 1), (12, 5, 4)]
)
def test_groups_that_do_not_divide_the_workers_are_refused_with_the_nearest_that_do(
    corpus: Path, workers: int, ranks: int, nearest: int
) -> None:
    message = rf"context_parallel: {ranks} does not divide workers \({workers}\).*: {nearest}"
    with pytest.raises(ValidationError, match=message):
        stage_of(corpus, workers=workers, context_parallel=ranks)


@pytest.mark.parametrize(
    ("length", "changed", "message"),
    [
        (
            64,
            {"workers": 4, "context_parallel": 4},
            "more ranks than chunks: 4 workers cannot share a row of 64 tokens in chunks of 32; lower "
            "context_parallel to 2, shorten attention.chunk_sizes or lengthen sequence_length",
        ),
        (
            96,
            {"workers": 6, "context_parallel": 2},
            "2 workers cannot share a row of 96 tokens in equal numbers of whole chunks of 32 (the largest "
            "of attention.chunk_sizes); use context_parallel: 1, or rows of a multiple of 64 tokens",
        ),
        (
            64,
            {"workers": 2, "context_parallel": 2, "attention": SPAN | {"chunk_sizes": [24, 32]}},
            "2 workers cannot share a row of 64 tokens in equal numbers of whole chunks of 96 (the least "
            "common multiple of attention.chunk_sizes); use context_parallel: 1, or rows of a multiple of "
            "192 tokens",
        ),
        (
            256,
            {"workers": 6, "context_parallel": 3, "attention": "full"},
            "3 workers cannot share a row of 256 tokens in equal numbers of tokens; use context_parallel: 2, "
            "or rows of a multiple of 3 tokens",
        ),
        (
            64,
            {"workers": 8, "context_parallel": 8, "micro_batch_rows": 3, "tokens_per_step": 192},
            "more ranks than chunks: 8 workers cannot share a row of 192 tokens (3 packed rows of 64, "
            "joined) in chunks of 32; lower context_parallel to 2, shorten attention.chunk_sizes or lengthen "
            "sequence_length",
        ),
    ],
)
def test_rows_that_are_not_whole_chunks_for_every_worker_are_refused(
    tmp_path: Path, context: CheckContext, length: int, changed: dict[str, Any], message: str
) -> None:
    corpus = write_corpus(tmp_path / "shards", length=length)
    stage = stage_of(corpus, **{"tokens_per_step": length * 6, **changed})
    with pytest.raises(InvalidKeyError) as refused:
        check(stage, context)
    assert str(refused.value) == f"context_parallel: {message}"


def test_joined_rows_are_what_is_cut(tmp_path: Path, context: CheckContext) -> None:
    keys = {"workers": 3, "context_parallel": 3, "micro_batch_rows": 3, "tokens_per_step": 192}
    check(stage_of(write_corpus(tmp_path / "packed"), **keys), context)
    whole = stage_of(write_corpus(tmp_path / "whole", packing="concatenate"), **keys)
    with pytest.raises(InvalidKeyError, match="cannot share a row of 64 tokens"):
        check(whole, context)


@pytest.mark.parametrize("kind", ["s2", "random"])
def test_attention_that_cannot_run_on_a_part_of_a_row_is_refused_by_name(
    corpus: Path, context: CheckContext, kind: str
) -> None:
    chunks = {"chunk_sizes": [32]} if kind == "random" else {}
    stage = stage_of(corpus, workers=2, context_parallel=2, attention={"kind": kind, **chunks})
    with pytest.raises(InvalidKeyError, match=f"context_parallel: attention of kind {kind} cannot run on a"):
        check(stage, context)


def test_a_layer_that_cannot_run_on_a_part_of_a_row_is_refused_by_name(
    corpus: Path, context: CheckContext, tmp_path: Path
) -> None:
    tiny_model(UNKNOWN, vocab_size=300).save_pretrained(tmp_path / "model")
    stage = stage_of(
        corpus, workers=2, context_parallel=2, model=str(tmp_path / "model"), attention={"kind": "full"}
    )
    with pytest.raises(InvalidKeyError, match=r"\Acontext_parallel: .*layers\.0\.self_attn.*\Z"):
        check(stage, context)


def test_models_of_attention_alone_may_share_rows(
    corpus: Path, context: CheckContext, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=300)).save_pretrained(tmp_path / "llama")
    stage = stage_of(
        corpus, workers=2, context_parallel=2, model=str(tmp_path / "llama"), attention={"kind": "full"}
    )
    check(stage, context)
    # 32 tokens' keys and values of 32 numbers each, there and back, in 2 layers and 24 micro-batches.
    assert "attention 768.0 KiB" in plan(stage, context)["exchange"]


@pytest.mark.parametrize("name", ["bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "zamba2"])
def test_the_plan_counts_every_layer_of_a_hybrid(corpus: Path, name: str) -> None:
    configuration = CONFIGS[name]
    stage = stage_of(corpus, workers=2, context_parallel=2, attention="full")
    share = Share(ranks=2, rows=1, tokens=64, itemsize=4)
    received = exchanged(stage, configuration, share, micro_batches=3)
    model = attached_skeleton(configuration, FullConfig())
    layers = [layer for _, layer in attention_layers(model)]
    heads = Heads(configuration.num_attention_heads, configuration.num_key_value_heads, layers[0].head_dim)
    assert received["attention"] == 3 * len(layers) * full_attention(share, heads).total
    mixers = [module for module in model.modules() if hasattr(module, "A_log")]
    states = sum(
        state_space(
            share, heads=mixer.num_heads, head_size=mixer.head_dim, state_size=mixer.ssm_state_size
        ).total
        for mixer in mixers
    )
    assert received["state-space layers"] == 3 * states > 0
    inputs = sum(mixer.conv1d.weight.shape[0] * (mixer.conv1d.weight.shape[2] - 1) for mixer in mixers)
    assert received["convolutions"] == 3 * 2 * 4 * inputs


def test_the_plan_shows_who_shares_rows_and_what_they_exchange(corpus: Path, context: CheckContext) -> None:
    said = plan(stage_of(corpus, workers=4, context_parallel=2, attention="full"), context)
    assert said["shapes"] == "24 rows of 64 tokens a step: 2 data-parallel groups x 12 micro-batches x 1 rows"
    assert said["layout"] == "2 data-parallel groups x 2 context-parallel ranks, 32 of 64 tokens a rank"
    assert said["exchange"].startswith("up to ")
    assert {"layout", "exchange"}.isdisjoint(plan(stage_of(corpus, workers=4), context))


def test_sharing_rows_saves_memory(corpus: Path) -> None:
    alone, shared = (stage_of(corpus, workers=4, context_parallel=ranks) for ranks in (1, 4))
    counted = Counted(Mamba2HybridConfig(**TINY, vocab_size=64), Rows(2**14, packed=True))
    whole, part = (counted.parts(stage, gpu=True) for stage in (alone, shared))
    assert part.activations == pytest.approx(whole.activations / 4, rel=0.05)
    assert 0 < part.exchange < whole.activations
    assert whole.exchange == 0


def test_a_recipe_names_file_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""\
name: shared
workspace: {tmp_path / "run"}
stages:
  corpus:
    prepare:
      sources: [{{needles: {{tokens: 63, needles: 1, questions: 1, ask: anywhere}}, documents: 8}}]
      tokenizer: builtin:tiny
      sequence_length: 64
  tuned:
    train:
      data: corpus
      model: builtin:tiny
      attention: {{kind: span, chunk_sizes: [32], block_size: 8}}
      steps: 1
      tokens_per_step: 64
      workers: 4
      context_parallel: 4
      learning_rate: 1.0e-3
"""
    )
    with pytest.raises(RecipeError) as refused:
        plan_recipe(path)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{path}:17: stages.tuned.train.context_parallel: more ranks than chunks: 4 ")
