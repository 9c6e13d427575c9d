"""The keys of a train stage."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.context import CheckContext, Context
from pipelines.errors import EspanError, InvalidKeyError
from pipelines.prepare.shards import ShardReader
from pipelines.recipe.keys.train import TrainKeys
from pipelines.train.check import check, plan
from pipelines.train.job import resolve_job
from pipelines.train.worker.group import Group
from pipelines.train.worker.model import training_model
from tests.pipelines.train.conftest import SPAN, TINY, MakeJob, write_corpus
from tests.pipelines.train.trainings import train_silently


def keys(corpus: Path, **changed: Any) -> dict[str, Any]:
    plain = {
        "data": str(corpus),
        "model": {"new": TINY},
        "attention": SPAN,
        "steps": 10,
        "tokens_per_step": 256,
        "learning_rate": 1e-3,
    }
    return plain | changed


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    return CheckContext("tuned", str(tmp_path / "tuned"), 0, str(tmp_path), {})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"context_parallel": 2}, r"context_parallel: 2 does not divide workers \(1\)"),
        ({"schedule": {"warmup_steps": 10}}, r"schedule\.warmup_steps: must be less than steps \(10\)"),
        ({"hylora": {"rank": 4}}, "hylora: adapts a trained model"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"deepspeed": {"zero": 4}}, "zero"),
        ({"precision": "fp16"}, "precision"),
        ({"learning_rte": 1.0}, "learning_rte"),
        ({"betas": [0.9]}, "betas"),
    ],
)
def test_impossible_keys_are_refused_by_name(corpus: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainKeys.model_validate(keys(corpus, **changed))


def test_a_step_that_is_not_whole_micro_batches_is_refused_with_the_nearest_that_is(
    corpus: Path, context: CheckContext
) -> None:
    stage = TrainKeys.model_validate(keys(corpus, tokens_per_step=300, workers=2))
    with pytest.raises(InvalidKeyError, match=r"tokens_per_step: 300 is not a multiple of 128 .* 256"):
        check(stage, context)


def test_a_missing_corpus_is_refused(corpus: Path, context: CheckContext) -> None:
    stage = TrainKeys.model_validate(keys(corpus, data="./nowhere"))
    with pytest.raises(InvalidKeyError, match=r"data: '\./nowhere' is neither an earlier stage nor a path"):
        check(stage, context)


def test_unfinished_shards_are_refused(corpus: Path, context: CheckContext, tmp_path: Path) -> None:
    unfinished = write_corpus(tmp_path / "unfinished")
    (unfinished / "manifest.json").unlink()
    stage = TrainKeys.model_validate(keys(unfinished))
    with pytest.raises(InvalidKeyError, match=r"data: .*unfinished"):
        check(stage, context)


def test_a_misspelt_size_of_a_new_model_is_refused_before_training(
    corpus: Path, context: CheckContext
) -> None:
    stage = TrainKeys.model_validate(keys(corpus, model={"new": {"hiden_size": 3}}))
    with pytest.raises(InvalidKeyError, match=r"model\.new: .*hiden_size"):
        check(stage, context)


def test_a_sound_stage_passes_and_plans(corpus: Path, context: CheckContext) -> None:
    stage = TrainKeys.model_validate(keys(corpus, workers=2))
    check(stage, context)
    planned = plan(stage, context)
    assert planned["shapes"] == "4 rows of 64 tokens a step: 2 workers x 2 micro-batches x 1 rows"
    assert planned["length"] == "10 steps, 2,560 tokens"


def test_the_number_of_workers_does_not_decide_what_comes_out() -> None:
    assert (
        {"workers", "context_parallel", "resources"}
        <= TrainKeys.execution_keys
        <= set(TrainKeys.model_fields)
    )


def test_data_of_another_tokenizer_is_refused(make_job: MakeJob, corpus: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(
        model
    )
    (model / "config.json").write_text("{}")
    stage = TrainKeys.model_validate(keys(corpus, model=str(model)))
    with pytest.raises(EspanError, match="was tokenized with builtin:tiny"):
        resolve_job(stage, Context("tuned", str(tmp_path), 0, {}, str(tmp_path), {}))


def test_a_corpus_without_rows_is_refused(tmp_path: Path) -> None:
    stage = TrainKeys.model_validate(keys(write_corpus(tmp_path / "empty", rows=0)))
    with pytest.raises(EspanError, match="holds no rows"):
        resolve_job(stage, Context("tuned", str(tmp_path), 0, {}, str(tmp_path), {}))


@pytest.mark.parametrize("recurrence", ["chunked", "naive"])
def test_recurrences_are_computed_by_the_backend_that_is_asked_for(
    corpus: Path, context: CheckContext, make_job: MakeJob, recurrence: str
) -> None:
    stage = TrainKeys.model_validate(keys(corpus, recurrence=recurrence))
    check(stage, context)
    assert f"({recurrence})" in plan(stage, context)["recurrences"]
    job = make_job("told", recurrence=recurrence)
    model = training_model(job, ShardReader(job.data).manifest)
    told = [getattr(each, "recurrence_backend", None) for each in model.modules()]
    assert set(told) == {None, recurrence}


def test_kernels_are_refused_to_workers_without_gpus_by_the_plan_and_by_the_workers(
    corpus: Path, context: CheckContext, make_job: MakeJob, alone: Group
) -> None:
    says = "recurrence: library computes on GPUs, and the workers have none; set auto, chunked or naive"
    stage = TrainKeys.model_validate(keys(corpus, recurrence="library", resources={"gpus": 0}))
    with pytest.raises(InvalidKeyError, match=says):
        check(stage, context)
    with pytest.raises(EspanError, match=says):
        train_silently(alone, make_job("told", recurrence="library"))
