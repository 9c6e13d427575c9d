"""Workers that share rows train as one worker does that holds them whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import EspanError
from pipelines.train.job import TrainJob
from pipelines.train.worker import engine as engine_module
from pipelines.train.worker import step as steps_module
from pipelines.train.worker.group import Group
from tests.pipelines.train.conftest import MakeJob, Workers, write_corpus
from tests.pipelines.train.drivers import driver
from tests.pipelines.train.trainings import metrics, plain_loop, train_silently
from tests.processes import PATIENCE_SECONDS
from tests.se_model.tiny_models import UNKNOWN, tiny_model

# Workers add the parts of a row's loss and gradients in another order than one worker does, in float32.
RTOL, ATOL = 1e-5, 1e-6
SHARED: dict[str, Any] = {"workers": 2, "context_parallel": 2}
CURVE = ("loss", "gradient_norm", "learning_rate", "tokens_seen")


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_workers_that_share_every_row_train_as_a_plain_loop_does(
    make_job: MakeJob, two_workers: Workers, zero: int
) -> None:
    job = make_job(**SHARED, deepspeed={"zero": zero}, weight_decay=0.1, clip=0.5)
    expected, weights = plain_loop(job)
    two_workers.run(train_silently, job)
    torch.testing.assert_close(metrics(job, "loss", "gradient_norm"), expected, rtol=RTOL, atol=ATOL)
    saved = load_file(f"{job.output}/model/model.safetensors")
    for name, tensor in saved.items():
        assert (tensor - weights[name]).norm() <= 1e-4 * weights[name].norm(), name


@pytest.mark.parametrize(
    "keys",
    [
        {"attention": "full"},
        {"attention": {"kind": "window", "window": 40}},
        {"attention": {"kind": "none", "chunk_sizes": [16, 32]}},
        {"micro_batch_rows": 2},
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "deepspeed": {"zero": 3}},
    ],
    ids=lambda keys: " ".join(f"{key} {value}" for key, value in keys.items()),
)
def test_sharing_rows_changes_no_loss(
    make_job: MakeJob, alone: Group, two_workers: Workers, keys: dict[str, Any]
) -> None:
    whole, shared = make_job("whole", **keys), make_job("shared", **keys, **SHARED)
    train_silently(alone, whole)
    two_workers.run(train_silently, shared)
    torch.testing.assert_close(metrics(shared, *CURVE), metrics(whole, *CURVE), rtol=RTOL, atol=ATOL)


def test_rows_without_documents_are_cut_side_by_side(
    make_job: MakeJob, alone: Group, two_workers: Workers, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"data": str(write_corpus(tmp_path / "whole", packing="concatenate"))}
    keys |= {"micro_batch_rows": 2, "steps": 3}
    whole, shared = make_job("whole", **keys), make_job("shared", **keys, **SHARED)
    train_silently(alone, whole)
    two_workers.run(train_silently, shared)
    torch.testing.assert_close(metrics(shared, *CURVE), metrics(whole, *CURVE), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("hylora", [None, {"rank": 4, "alpha": 8}], ids=["full", "hylora"])
@pytest.mark.parametrize("zero", [2, 3])
def test_a_hybrid_of_transformers_trains_alike(
    make_job: MakeJob,
    alone: Group,
    two_workers: Workers,
    tmp_path: Path,
    zero: int,
    hylora: dict[str, int] | None,
) -> None:
    from transformers import BambaConfig, BambaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "attn_layer_indices": [1]}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32, "vocab_size": 300}
    sizes |= {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2}
    BambaForCausalLM(BambaConfig(**sizes)).save_pretrained(tmp_path / "bamba")
    keys: dict[str, Any] = {"data": str(write_corpus(tmp_path / "whole", packing="concatenate"))}
    keys |= {"model": str(tmp_path / "bamba"), "steps": 4, "hylora": hylora}
    whole, shared = make_job("alone", **keys), make_job("shared", **keys, **SHARED, deepspeed={"zero": zero})
    train_silently(alone, whole)
    two_workers.run(train_silently, shared)
    torch.testing.assert_close(metrics(shared, *CURVE), metrics(whole, *CURVE), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("variant", ["hylora", "lora"])
def test_adapters_train_alike(
    make_job: MakeJob, alone: Group, two_workers: Workers, zero: int, variant: str
) -> None:
    base = make_job("base", steps=2)
    train_silently(alone, base)
    keys: dict[str, Any] = {"model": f"{base.output}/model", "steps": 4, "deepspeed": {"zero": zero}}
    keys |= {"hylora": {"rank": 4, "alpha": 8, "variant": variant}}
    whole, shared = make_job("whole", **keys), make_job("shared", **keys, **SHARED)
    train_silently(alone, whole)
    two_workers.run(train_silently, shared)
    torch.testing.assert_close(metrics(shared, *CURVE), metrics(whole, *CURVE), rtol=RTOL, atol=ATOL)
    assert Path(shared.output, "model", "adapter_model.safetensors").exists()


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_gradients_may_be_exchanged_while_rows_are(
    make_job: MakeJob, alone: Group, two_workers: Workers, zero: int
) -> None:
    keys: dict[str, Any] = {"steps": 2, "deepspeed": {"zero": zero}, "activation_checkpointing": True}
    whole, shared = make_job("whole", **keys), make_job("shared", **keys, **SHARED)
    train_silently(alone, whole)
    two_workers.run(train_in_small_buckets, shared)
    torch.testing.assert_close(metrics(shared, *CURVE), metrics(whole, *CURVE), rtol=RTOL, atol=ATOL)


def train_in_small_buckets(group: Group, job: TrainJob) -> None:
    """As a large model trains: DeepSpeed sums what gradients there are in the middle of the backward pass."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine_module, "_BUCKET_ELEMENTS", 3000)
        train_silently(group, job)


def test_bf16_trains_on_shared_rows(make_job: MakeJob, two_workers: Workers) -> None:
    alone, shared = (
        make_job(name, steps=12, precision="bf16", workers=2, **keys)
        for name, keys in (("alone", {}), ("shared", {"context_parallel": 2}))
    )
    two_workers.run(train_silently, alone)
    two_workers.run(train_silently, shared)
    assert metrics(shared, "loss")[-1] < metrics(shared, "loss")[0]
    torch.testing.assert_close(metrics(shared, "loss"), metrics(alone, "loss"), rtol=0.02, atol=0)


@pytest.mark.parametrize("zero", [2, 3])
def test_training_goes_on_with_other_workers_and_other_shares(
    make_job: MakeJob, alone: Group, two_workers: Workers, zero: int
) -> None:
    keys = {"deepspeed": {"zero": zero}, "schedule": {"kind": "constant"}, "weight_decay": 0.5}
    undisturbed = make_job("undisturbed", **keys, steps=8)
    train_silently(alone, undisturbed)
    two_workers.run(train_silently, make_job("moved", **keys, **SHARED, steps=3))
    two_workers.run(train_silently, make_job("moved", **keys, steps=5, workers=2))
    two_workers.run(train_silently, make_job("moved", **keys, **SHARED, steps=6))
    moved = make_job("moved", **keys, steps=8)
    train_silently(alone, moved)
    names = ("step", "loss", "gradient_norm")
    torch.testing.assert_close(metrics(moved, *names), metrics(undisturbed, *names), rtol=1e-5, atol=1e-6)


def test_workers_that_share_a_row_drop_on_their_own_and_workers_with_rows_of_their_own_alike() -> None:
    seeds = [steps_module.dropout_seed(3, number, place) for number in range(4) for place in range(4)]
    assert len(set(seeds)) == 16
    assert steps_module.dropout_seed(3, 0, 1) == seeds[1]


def test_a_model_that_only_the_workers_see_is_refused_before_they_train(
    make_job: MakeJob, two_workers: Workers, tmp_path: Path
) -> None:
    tiny_model(UNKNOWN, vocab_size=300).save_pretrained(tmp_path / "model")
    job = make_job(**SHARED, model=str(tmp_path / "model"), attention="full")
    for message in two_workers.run(refusal, job):
        assert "cannot be trained as asked" in message
        assert "layers.0.self_attn" in message
        assert "\n" not in message
    assert not Path(job.output, "metrics.jsonl").exists()


def refusal(group: Group, job: TrainJob) -> str:
    try:
        train_silently(group, job)
    except EspanError as error:
        return str(error)
    return "nothing"


def test_under_ray_every_layout_has_the_same_losses(make_job: MakeJob, alone: Group, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"steps": 6, "tokens_per_step": 256, "learning_rate": 1e-3}
    keys |= {"attention": {"kind": "span", "chunk_sizes": [8, 16], "block_size": 8, "top_k": 2}}
    layouts = [(2, 2), (4, 2), (4, 4)]
    jobs = [
        make_job(f"{workers}-{ranks}", **keys, workers=workers, context_parallel=ranks)
        for workers, ranks in layouts
    ]
    undisturbed = make_job("alone", **keys)
    train_silently(alone, undisturbed)
    log = tmp_path / "driver.log"
    with driver(tmp_path, *jobs) as process:
        assert process.wait(2 * PATIENCE_SECONDS) == 0, log.read_text()[-3000:]
    whole = metrics(undisturbed, "step", "loss")
    assert whole[:, 0].tolist() == list(range(1, 7))
    for job in jobs:
        torch.testing.assert_close(metrics(job, "step", "loss"), whole, rtol=1e-4, atol=0)
