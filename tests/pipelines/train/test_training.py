"""What training computes, whoever computes it: against a plain loop, over ZeRO stages, over workers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import EspanError
from pipelines.prepare.shards import ShardReader
from pipelines.train.failures import restart_mends
from pipelines.train.job import TrainJob
from pipelines.train.worker.batches import BatchPlan, RowOrder, model_input, target_count
from pipelines.train.worker.checkpoints import CheckpointStore
from pipelines.train.worker.engine import Engine
from pipelines.train.worker.group import Group
from pipelines.train.worker.metrics import read_metrics
from pipelines.train.worker.model import training_model
from pipelines.train.worker.step import Steps
from se_model.attach import set_step
from se_model.loss import causal_lm_loss
from tests.pipelines.train.conftest import MakeJob, Workers, write_corpus, write_needles
from tests.pipelines.train.trainings import metrics, plain_loop, train_silently

# Sums over workers and over ZeRO's flat buffers are taken in another order than in the plain loop, in
# float32.
RTOL, ATOL = 1e-5, 1e-6


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_workers_under_zero_train_as_a_plain_loop_does(
    make_job: MakeJob, two_workers: Workers, zero: int
) -> None:
    job = make_job(workers=2, deepspeed={"zero": zero}, weight_decay=0.1, clip=0.5)
    expected, weights = plain_loop(job)
    two_workers.run(train_silently, job)
    torch.testing.assert_close(metrics(job, "loss", "gradient_norm"), expected, rtol=RTOL, atol=ATOL)
    saved = load_file(f"{job.output}/model/model.safetensors")
    assert saved
    for name, tensor in saved.items():
        # As a whole: Adam divides by the gradient's size, so single elements with a gradient near zero may
        # differ more.
        assert (tensor - weights[name]).norm() <= 1e-4 * weights[name].norm(), name


def test_one_worker_and_two_have_the_same_loss_although_their_rows_hold_different_numbers_of_targets(
    make_job: MakeJob, alone: Group, two_workers: Workers
) -> None:
    one, two = make_job("one", micro_batch_rows=2), make_job("two", micro_batch_rows=2, workers=2)
    reader = ShardReader(one.data)
    counts = {target_count(reader, [row]) for row in range(len(reader))}
    assert len(counts) > 1
    train_silently(alone, one)
    two_workers.run(train_silently, two)
    names = ("loss", "gradient_norm", "learning_rate", "tokens_seen")
    torch.testing.assert_close(metrics(one, *names), metrics(two, *names), rtol=RTOL, atol=ATOL)


def test_rows_without_boundaries_train_whole(make_job: MakeJob, alone: Group, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "whole", packing="concatenate")
    job = make_job(data=str(corpus), micro_batch_rows=2, steps=2)
    train_silently(alone, job)
    model = training_model(job, ShardReader(job.data).manifest).train()
    plan, order, reader = BatchPlan(4, 2, 1), RowOrder(13, job.seed), ShardReader(job.data)
    losses = []
    for batch in plan.micro_batches(order, 1, 0):
        set_step(model, batch.number)
        losses.append(causal_lm_loss(model, model_input(reader, batch, packed=False).input_ids)[0].item())
    assert metrics(job, "loss")[0].item() == pytest.approx(sum(losses) / (4 * 63), rel=RTOL)


def test_activation_checkpointing_changes_no_loss(make_job: MakeJob, alone: Group) -> None:
    kept, recomputed = make_job("kept"), make_job("recomputed", activation_checkpointing=True)
    train_silently(alone, kept)
    train_silently(alone, recomputed)
    names = ("loss", "gradient_norm")
    torch.testing.assert_close(metrics(kept, *names), metrics(recomputed, *names), rtol=1e-6, atol=1e-7)


def test_bf16_trains(make_job: MakeJob, alone: Group) -> None:
    full, half = make_job("full", steps=12), make_job("half", steps=12, precision="bf16")
    train_silently(alone, full)
    train_silently(alone, half)
    assert metrics(half, "loss")[-1] < metrics(half, "loss")[0]
    torch.testing.assert_close(metrics(half, "loss"), metrics(full, "loss"), rtol=0.02, atol=0)


@pytest.fixture
def adapted(make_job: MakeJob, alone: Group) -> TrainJob:
    """A job that adapts a model which an earlier job trained."""
    base = make_job("base", steps=2)
    train_silently(alone, base)
    return make_job("adapted", model=f"{base.output}/model", hylora={"rank": 4, "alpha": 8}, steps=3)


def start(job: TrainJob, group: Group) -> tuple[torch.nn.Module, Steps]:
    """The model of a job, and what runs its steps."""
    corpus = ShardReader(job.data)
    model = training_model(job, corpus.manifest)
    plan = BatchPlan(job.rows_per_step, 1, 1)
    engine = Engine(model, job.keys, workers=1, accumulation=plan.accumulation)
    return model, Steps(job.keys, group, engine, corpus, plan, RowOrder(len(corpus), 0), True, 0)


def copies(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_what_should_train_trains_and_everything_else_stays_bit_for_bit(
    adapted: TrainJob, alone: Group
) -> None:
    model, steps = start(adapted, alone)
    before = copies(model)
    for step in (1, 2):  # LoRA's A has a gradient only once its B is no longer zero
        steps.run(step)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert 0 < len(trained) < len(before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trained), name


def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    make_job: MakeJob, alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = start(make_job(), alone)
    before = copies(model)
    loss_sum = Engine.loss_sum
    monkeypatch.setattr(Engine, "loss_sum", lambda *arguments: loss_sum(*arguments) * float("nan"))
    with pytest.raises(EspanError, match="step 1: the loss is nan"):
        steps.run(1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_adapter_is_left_as_peft_writes_it_and_gives_the_trained_models_logits(
    adapted: TrainJob, alone: Group
) -> None:
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    train_silently(alone, adapted)
    checkpoint = f"{adapted.output}/checkpoints/step-00000003/adapter"
    tokens = torch.arange(40)[None]
    logits = []
    for folder in (f"{adapted.output}/model", checkpoint):
        assert PeftConfig.from_pretrained(folder).base_model_name_or_path == adapted.model.base
        base = AutoModelForCausalLM.from_pretrained(adapted.model.base, dtype="float32")
        with torch.no_grad():
            logits.append(PeftModel.from_pretrained(base, folder).eval()(tokens).logits)
    assert torch.equal(*logits)
    with torch.no_grad():
        assert not torch.allclose(base.eval()(tokens).logits, logits[0] + 1e-3)
    assert Path(adapted.output, "model", "tokenizer.json").exists()


def test_a_training_that_diverges_stops_and_names_the_step(make_job: MakeJob, alone: Group) -> None:
    job = make_job(learning_rate=1e30, clip=None, steps=20)
    with pytest.raises(EspanError, match=r"step \d+: the (loss|gradient norm) is (nan|inf)"):
        train_silently(alone, job)
    assert torch.isfinite(metrics(job, "loss")).all()


def test_a_failure_of_one_worker_before_training_fails_all_with_its_message(
    make_job: MakeJob, two_workers: Workers
) -> None:
    messages = two_workers.run(fails_on_the_second, make_job(workers=2))
    assert messages == ["disk on fire", "disk on fire"]


def fails_on_the_second(group: Group, job: TrainJob) -> str:
    def action() -> None:
        if group.rank == 1:
            raise EspanError("disk on fire")

    try:
        group.agree(action)
    except EspanError as error:
        return str(error)
    return "nothing"


def refuses(group: Group, job: TrainJob) -> str:
    def action() -> None:
        if group.rank == 1:
            raise {"bug": TypeError, "lost": ConnectionResetError}[job.output.rpartition("/")[2]]("who")

    try:
        group.agree(action)
    except Exception as error:
        return f"{type(error).__name__} {restart_mends(error)} {error}"
    return "nothing"


def test_any_failure_of_one_worker_before_training_is_told_to_all(
    make_job: MakeJob, two_workers: Workers
) -> None:
    told, own = two_workers.run(refuses, make_job("bug", workers=2))
    assert re.fullmatch(r"FinalFailure False TypeError: who \(in \S+test_training.py, line \d+\)", told)
    assert own == "TypeError False who"
    assert two_workers.run(refuses, make_job("lost", workers=2)) == [
        "ConnectionError True who",
        "ConnectionResetError True who",
    ]


def test_a_model_with_too_few_words_is_refused(make_job: MakeJob, alone: Group) -> None:
    job = make_job(model={"new": {**make_job().model.new, "vocab_size": 16}})
    with pytest.raises(EspanError, match="embeds only 16"):
        train_silently(alone, job)


def test_metrics_tell_what_was_retrieved_and_how_much_memory_it_took(make_job: MakeJob, alone: Group) -> None:
    job = make_job(steps=1)
    summary = train_silently(alone, job)
    (record,) = read_metrics(f"{job.output}/metrics.jsonl")
    assert 0 < record["retrieval_filled"] <= 1
    assert record["memory_bytes"] > 50_000_000
    assert summary["steps"] == 1
    assert summary["tokens"] == 256


RETRIEVAL = ("asked", "not_asked", "chance", "asked_by_head", "not_asked_by_head")


def found(job: TrainJob) -> list[dict[str, Any]]:
    """What each logged step says about needles."""
    return [
        {name: record[f"retrieval_{name}"] for name in RETRIEVAL if f"retrieval_{name}" in record}
        for record in read_metrics(f"{job.output}/metrics.jsonl")
    ]


@pytest.fixture
def seeking(make_job: MakeJob, tmp_path: Path) -> MakeJob:
    """Makes jobs on needle documents of 32 tokens, in chunks that ask for what lies a chunk or two before."""
    corpus = write_needles(tmp_path / "needles")
    attention = {"kind": "span", "chunk_sizes": [8], "block_size": 4, "top_k": 1}

    def make(output: str = "out", **keys: Any) -> TrainJob:
        return make_job(output, **{"data": str(corpus), "attention": attention, "steps": 2, **keys})

    return make


def test_metrics_tell_whether_the_needles_that_are_asked_for_are_retrieved(
    seeking: MakeJob, alone: Group
) -> None:
    job = seeking(steps=8, log_every=2)
    summary = train_silently(alone, job)
    records = found(job)
    assert len(records) == 5  # the first step, and every second
    for record in records:
        assert set(record) == set(RETRIEVAL)
        assert 0 < record["chance"] < 1
        assert np.shape(record["asked_by_head"]) == np.shape(record["not_asked_by_head"]) == (1, 2)
        assert np.mean(record["asked_by_head"]) == pytest.approx(record["asked"])
    lists = {"asked_by_head", "not_asked_by_head"}
    assert set(summary["retrieval"]) == {"asked", "not_asked", "chance", "distinct"} | lists
    assert summary["retrieval"]["asked"] == records[-1]["asked"]  # steps 7 and 8, of which 8 is logged


def test_every_candidate_is_found_where_all_are_chosen(seeking: MakeJob, alone: Group) -> None:
    job = seeking(attention={"kind": "span", "chunk_sizes": [8, 16], "block_size": 4, "top_k": 8})
    train_silently(alone, job)
    for record in found(job):
        assert record["asked"] == record["not_asked"] == record["chance"] == 1.0


def test_two_workers_find_what_one_finds(seeking: MakeJob, alone: Group, two_workers: Workers) -> None:
    """Also where a micro-batch is several rows, joined to one."""
    one, two = seeking("one", steps=1), seeking("two", steps=1, workers=2, micro_batch_rows=2)
    train_silently(alone, one)
    two_workers.run(train_silently, two)
    (by_one,), (by_two,) = found(one), found(two)
    assert by_two.pop("chance") == pytest.approx(by_one.pop("chance"))  # a sum in another order
    assert by_one == by_two
    assert by_one["asked"] + by_one["not_asked"] > 0


def test_recomputing_layers_finds_the_same(seeking: MakeJob, alone: Group) -> None:
    kept, recomputed = seeking("kept", steps=1), seeking("again", steps=1, activation_checkpointing=True)
    train_silently(alone, kept)
    train_silently(alone, recomputed)
    assert found(kept) == found(recomputed)


def test_attention_that_chooses_nothing_and_data_without_needles_find_nothing(
    seeking: MakeJob, make_job: MakeJob, alone: Group
) -> None:
    jobs = [seeking("full", steps=1, attention={"kind": "full"}), make_job("words", steps=1)]
    for job in jobs:
        assert "retrieval" not in train_silently(alone, job)
        assert found(job) == [{}]


def test_a_checkpoint_says_in_which_precision_it_was_written(make_job: MakeJob, alone: Group) -> None:
    job = make_job(steps=1, precision="bf16")
    train_silently(alone, job)
    newest = CheckpointStore(job.checkpoints).newest()
    assert newest is not None
    assert newest.state.precision == "bf16"
