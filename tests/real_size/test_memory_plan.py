"""The plan's memory is what a training of the same recipe really holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from pipelines.context import Context
from pipelines.models.fitting import attention_config
from pipelines.recipe.keys.train import TrainKeys
from pipelines.system.machine import bytes_text
from pipelines.train.job import TrainJob, resolve_job
from pipelines.train.plan.memory.count import Counted, Rows
from pipelines.train.plan.memory.engine import Sharing, fullest
from pipelines.train.plan.memory.parts import MemoryParts
from pipelines.train.plan.memory.timeline import moments
from se_model.hybrid import Mamba2HybridConfig
from tests.pipelines.train.conftest import Workers, two_workers, write_corpus  # noqa: F401 - a fixture
from tests.real_size.held_memory import held_by_plain_loop, held_by_training

LENGTH = 256
SIZES = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MAMBA = {
    "mamba_d_state": 32,
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 64,
    "attn_layer_indices": [2],
}
HYBRID = {
    "attn_layer_indices": [2],
    "head_dim": 32,
    "rotary_dim": 16,
    "attention_conv_kernel": 4,
    "state_size": 32,
    "mamba_head_dim": 32,
    "ssm_chunk_size": 64,
}
MODELS: dict[str, PreTrainedConfig] = {
    "hybrid": Mamba2HybridConfig(**SIZES, **HYBRID),
    "bamba": AutoConfig.for_model("bamba", **SIZES, intermediate_size=256, **MAMBA),
    "llama": AutoConfig.for_model("llama", **SIZES, intermediate_size=256),
}
PACKING = {"hybrid": "documents", "bamba": "documents", "llama": "concatenate"}
HYLORA = {"hybrid": "hylora", "bamba": "hylora", "llama": "lora+"}

# Each value of each: model, checkpointing, what trains, ZeRO, precision, micro-batches in a step.
PLAIN = [("hybrid", False, "full"), ("bamba", True, "hylora"), ("llama", False, "hylora")]
SHARED = [
    ("bamba", False, "hylora", 1, "fp32", 2),
    ("hybrid", True, "full", 2, "fp32", 2),
    ("hybrid", False, "hylora", 2, "bf16", 1),
    ("llama", True, "full", 3, "fp32", 1),
]

Make = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes jobs that train one of MODELS from a folder."""
    folder = tmp_path_factory.mktemp("memory")

    def job(name: str, **keys: Any) -> TrainJob:
        model, corpus, output = folder / name, folder / PACKING[name], folder / "output"
        if not model.exists():
            AutoModelForCausalLM.from_config(MODELS[name]).save_pretrained(model)
        if not corpus.exists():
            write_corpus(corpus, rows=8, length=LENGTH, packing=PACKING[name])
        output.mkdir(exist_ok=True)
        plain = {
            "data": str(corpus),
            "model": str(model),
            "attention": {"kind": "span", "chunk_sizes": [64], "block_size": 16, "top_k": 2},
            "steps": 2,
            "tokens_per_step": LENGTH,
            "learning_rate": 1e-4,
        }
        stage = TrainKeys.model_validate(plain | keys)
        return resolve_job(stage, Context("output", str(output), 3, {}, str(folder), {}))

    return job


def keys_of(name: str, checkpointing: bool, trains: str) -> dict[str, Any]:
    keys: dict[str, Any] = {"activation_checkpointing": checkpointing}
    if trains == "hylora":
        keys["hylora"] = {"rank": 4, "alpha": 8.0, "variant": HYLORA[name]}
    return keys


class Table:
    """What was planned and what was held, row by row."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.worst = 0.0

    def add(self, row: tuple[Any, ...], planned: MemoryParts, held: int) -> None:
        ratio = planned.total / held
        self.worst = max(self.worst, abs(ratio - 1))
        self.lines.append(f"{ratio:.3f}  {row}: {bytes_text(planned.total)} ({planned}), {bytes_text(held)}")

    def check(self) -> None:
        assert self.worst < 0.1, "planned / held\n" + "\n".join(self.lines)


def test_a_plain_loop_holds_what_is_planned(make: Make) -> None:
    table = Table()
    for name, checkpointing, trains in PLAIN:
        job = make(name, **keys_of(name, checkpointing, trains))
        counted = Counted(MODELS[name], Rows(LENGTH, packed=False))
        weights, stretches = counted.pass_of(job.keys, gpu=False)
        alone = Sharing(zero=0, workers=1, accumulating=False, gpu=False)
        table.add(
            (name, checkpointing, trains),
            fullest(weights, alone, moments(stretches)),
            held_by_plain_loop(job),
        )
    table.check()


def test_every_worker_under_deepspeed_holds_what_is_planned(make: Make, two_workers: Workers) -> None:  # noqa: F811
    table = Table()
    for name, checkpointing, trains, zero, precision, micro_batches in SHARED:
        job = make(
            name,
            workers=2,
            deepspeed={"zero": zero},
            precision=precision,
            tokens_per_step=2 * micro_batches * LENGTH,
            **keys_of(name, checkpointing, trains),
        )
        counted = Counted(MODELS[name], Rows(LENGTH, PACKING[name] == "documents"))
        table.add(
            (name, checkpointing, trains, zero, precision, micro_batches),
            replace(counted.parts(job.keys, gpu=False), process=0),
            max(two_workers.run(held_by_training, job)),
        )
    table.check()


def test_layers_alike_are_counted_once_and_come_to_the_same(make: Make) -> None:
    from pipelines.train.plan.memory.passes import Batch, Skeleton

    attention = attention_config(make("hybrid").keys.attention, 0)
    few, many = (
        Skeleton(
            Mamba2HybridConfig(**{**SIZES, "num_hidden_layers": layers}, **HYBRID),
            attention,
            None,
            torch.float32,
        ).run(Batch(1, LENGTH, packed=True), checkpointing=False, gpu=False)
        for layers in (5, 8)
    )
    # Layers 3 to 7 are as layer 0, which is the one that is counted.
    forward = [stretch for stretch in many if stretch.name == "forward"]
    assert forward[3:] == [forward[0]] * 5
    more = max(each.total for each in moments(many)) - max(each.total for each in moments(few))
    assert more == 3 * forward[0].change
