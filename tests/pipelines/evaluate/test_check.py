"""What an evaluate stage refuses before anything runs, and what makes it run again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save
from transformers import AutoTokenizer

from pipelines.context import CheckContext, EarlierStage
from pipelines.errors import InvalidKeyError
from pipelines.evaluate.check import check, plan
from pipelines.recipe.keys.evaluate import EvaluateKeys
from pipelines.recipe.keys.prepare import PrepareKeys
from tests.se_model.tiny_models import CONFIGS

RECALL: dict[str, Any] = {"lengths": [64], "samples": 2, "tasks": ["single"]}
PERPLEXITY: dict[str, Any] = {"data": "corpus", "lengths": [32, 64]}


def prepared(sequence_length: int = 64, holdout: float = 0.1) -> PrepareKeys:
    sources = [{"needles": {"tokens": 127}, "documents": 2}]
    keys = {"sources": sources, "tokenizer": "builtin:tiny", "sequence_length": sequence_length}
    return PrepareKeys.model_validate({**keys, "holdout": holdout})


def context(tmp_path: Path, prepared: PrepareKeys) -> CheckContext:
    corpus = EarlierStage("corpus", "prepare", prepared, str(tmp_path / "corpus"))
    return CheckContext("scores", str(tmp_path / "scores"), 0, str(tmp_path), {"corpus": corpus})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "nothing to evaluate"),
        ({"recall": RECALL | {"lengths": [64, 64]}}, "64 is given twice"),
        ({"recall": RECALL | {"tasks": ["single", "single"]}}, "single is given twice"),
        ({"recall": RECALL | {"tasks": ["singel"]}}, "recall.tasks.0"),
        ({"recall": RECALL | {"lengths": []}}, "at least 1 item"),
        ({"perplexity": PERPLEXITY | {"scored": 32}}, "less than the shortest length, 32"),
        ({"recall": RECALL, "attention": {"kind": "span"}}, "scores need 'causal'"),
        ({"recall": RECALL, "atention": "full"}, "atention"),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        EvaluateKeys.model_validate({"model": "builtin:tiny", **keys})


def test_span_attention_that_sees_nothing_ahead_is_allowed() -> None:
    attention = {"kind": "span", "selection": "causal", "chunk_sizes": 64}
    stage = EvaluateKeys.model_validate({"model": "builtin:tiny", "recall": RECALL, "attention": attention})
    assert stage.attention.kind == "span"


def test_half_of_the_shortest_length_is_scored_unless_said_otherwise() -> None:
    stage = EvaluateKeys.model_validate({"model": "m", "perplexity": PERPLEXITY})
    assert stage.perplexity is not None
    assert stage.perplexity.scored_tokens == 16


@pytest.mark.parametrize(
    ("corpus", "key", "says"),
    [
        (prepared(sequence_length=48), "perplexity.lengths.1", "64 is more than sequence_length 48"),
        (prepared(holdout=0.0), "perplexity.data", "holds no rows out"),
    ],
)
def test_shards_that_do_not_serve_are_refused(
    tmp_path: Path, model_folder: Path, corpus: PrepareKeys, key: str, says: str
) -> None:
    stage = EvaluateKeys.model_validate({"model": str(model_folder), "perplexity": PERPLEXITY})
    with pytest.raises(InvalidKeyError, match=says) as refused:
        check(stage, context(tmp_path, corpus))
    assert refused.value.key == key


def test_the_training_rows_may_be_scored_when_asked_for(tmp_path: Path, model_folder: Path) -> None:
    keys = {"model": str(model_folder), "perplexity": PERPLEXITY | {"split": "train"}}
    check(EvaluateKeys.model_validate(keys), context(tmp_path, prepared(holdout=0.0)))


def test_the_number_of_workers_does_not_make_it_run_again(
    tmp_path: Path, model_folder: Path, write_recipe: Callable[[str], Path]
) -> None:
    from pipelines.recipe.parse import read_recipe
    from pipelines.run.lineage import FileHashes, identify

    def fingerprint(extra: str) -> str:
        recipe = read_recipe(
            write_recipe(f"""
            name: run
            stages:
              scores:
                evaluate: {{model: "{model_folder}", recall: {{lengths: [64]}}, {extra}}}
            """)
        )
        return identify(recipe, recipe.stages["scores"], {}, FileHashes.load(str(tmp_path))).fingerprint

    assert fingerprint("workers: 2") == fingerprint("workers: 3")
    assert fingerprint("workers: 2") != fingerprint("tokens_per_batch: 128")


def on_cpus(model: str, recurrence: str) -> EvaluateKeys:
    keys = {"model": model, "recurrence": recurrence, "recall": RECALL, "resources": {"gpus": 0}}
    return EvaluateKeys.model_validate(keys)


def test_a_backend_that_cannot_compute_the_models_recurrences_is_refused(
    tmp_path: Path, model_folder: Path
) -> None:
    there, without = context(tmp_path, prepared()), tmp_path / "llama"
    CONFIGS["llama"].save_pretrained(without)
    (without / "model.safetensors").write_bytes(save({"weight": torch.zeros(1)}))
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(without)
    for model, recurrence, says in [
        (model_folder, "library", "library computes on GPUs, and the workers have none"),
        (without, "chunked", "chunked is asked for, but the model has no recurrence"),
    ]:
        with pytest.raises(InvalidKeyError, match=says) as refused:
            check(on_cpus(str(model), recurrence), there)
        assert refused.value.key == "recurrence"


def test_the_plan_says_what_computes_the_recurrences_that_a_backend_is_asked_for(
    tmp_path: Path, model_folder: Path
) -> None:
    there = context(tmp_path, prepared())
    said = plan(on_cpus(str(model_folder), "naive"), there)
    assert "Mamba-2 in 2 layers: token by token (naive)" in said["recurrences"]
    assert "recurrences" not in plan(on_cpus(str(model_folder), "auto"), there)
