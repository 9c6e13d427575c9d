"""What a worker holds while a model is loaded, and that it is the model that was asked for."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pipelines.errors import EspanError
from pipelines.models.loading import load_model
from pipelines.models.references import ModelSource
from pipelines.models.weights.files import WeightFiles
from pipelines.models.weights.skeleton import skeleton, tie
from pipelines.prepare.shards import ShardReader
from pipelines.recipe.keys.train import TrainKeys
from pipelines.train.job import TrainJob
from pipelines.train.worker.engine import Engine, import_deepspeed
from pipelines.train.worker.model import load_for, open_training, training_model
from se_model import Mamba2HybridConfig
from tests.distributed import run_distributed
from tests.pipelines.train.conftest import cpu_group, write_corpus
from tests.se_model.tiny_models import tiny_model

WORKERS = 4
LARGE = Mamba2HybridConfig(
    vocab_size=8192,
    hidden_size=1024,
    num_hidden_layers=14,
    attn_layer_indices=[6],
    num_attention_heads=8,
    head_dim=64,
    rotary_dim=32,
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 400 MB in float32."""
    folder = tmp_path_factory.mktemp("large")
    model = skeleton(LARGE, torch.float32)
    tie(model, set(model.all_tied_weights_keys))
    save_file(
        {name: torch.full(p.shape, 0.01) for name, p in model.named_parameters()},
        folder / "model.safetensors",
    )
    LARGE.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "shards")


def job_for(model: Path, corpus: Path, zero: int) -> TrainJob:
    stage = TrainKeys.model_validate(
        {
            "data": str(corpus),
            "model": str(model),
            "attention": {"kind": "full"},
            "hylora": {"rank": 2, "alpha": 4},
            "steps": 1,
            "tokens_per_step": 256,
            "learning_rate": 1e-3,
            "workers": WORKERS,
            "precision": "fp32",
            "deepspeed": {"zero": zero},
        }
    )
    return TrainJob(stage, ModelSource(str(model)), str(corpus), "builtin:tiny", "", 3, 4)


def memory(name: str) -> int:
    """This process's memory in bytes: VmRSS now, VmHWM at its highest, files' pages that it maps included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def growth_while_loading(rank: int, size: int, job: TrainJob) -> tuple[int, int]:
    """How much this process grew at most while it loaded its share; on the first worker, also a whole model.

    Counted is all that the system counts as the process's own (resident set), pages of mapped files included,
    beyond what Python and the libraries take before there is a model.
    """
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    group, manifest = cpu_group(rank, size), ShardReader(job.data).manifest
    import_deepspeed()
    opened = open_training(job, manifest)
    before = start_again()
    model = load_for(opened, job.keys, group)
    sharded = memory("VmHWM") - before
    Engine(model, job.keys, workers=size, accumulation=1)
    before = start_again()
    if rank:
        return sharded, 0
    with torch.no_grad():  # reads every page of it
        assert all(parameter.sum().isfinite() for parameter in training_model(job, manifest).parameters())
    return sharded, memory("VmHWM") - before


def start_again() -> int:
    """Lets VmHWM start again at what there is now, which is returned."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def test_a_worker_holds_its_share_of_a_model_and_never_the_whole(large: Path, corpus: Path) -> None:
    grown = run_distributed(growth_while_loading, WORKERS, job_for(large, corpus, zero=3))
    whole = grown[0][1]
    assert whole > 0.9 * (large / "model.safetensors").stat().st_size
    assert max(sharded for sharded, _ in grown) < 0.45 * whole


# Renamed tensors, experts put together, shared layers, tied heads, tensors kept in float32.
@pytest.mark.parametrize("name", ["jamba", "nemotron_h", "qwen3_next", "zamba2", "mamba2_hybrid", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_loaded_tensor_by_tensor_is_what_transformers_loads(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tiny_model(name).save_pretrained(tmp_path, max_shard_size="60KB")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    found = load_model(ModelSource(str(tmp_path)), dtype)
    for kind in ("named_parameters", "named_buffers"):
        wanted, there = (dict(getattr(model, kind)()) for model in (expected, found))
        assert wanted.keys() == there.keys()
        for key, tensor in wanted.items():
            assert tensor.dtype == there[key].dtype, key
            assert torch.equal(tensor, there[key]), key


def test_a_published_checkpoint_is_read_from_its_torch_file(tmp_path: Path) -> None:
    published = {
        "d_model": 64,
        "n_layer": 2,
        "vocab_size": 100,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 16},
        "attn_layer_idx": [1],
        "attn_cfg": {"causal": True, "d_conv": 4, "head_dim": 16, "num_heads": 4, "qkv_proj_bias": False},
        "tie_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    model = skeleton(Mamba2HybridConfig.from_pretrained(tmp_path), torch.float32)
    tensors = {key: torch.randn(value.shape) for key, value in model.state_dict().items()}
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = load_model(ModelSource(str(tmp_path)), torch.bfloat16)
    assert found.lm_head.weight is found.backbone.embedding.weight
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, tensors[key].bfloat16()), key


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "lm_head.weight is missing"),
        ({"lm_head.weight": torch.zeros(3, 5)}, r"lm_head.weight has shape \[3, 5\] instead of"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_a_tensor_is_read(
    tensors: dict[str, torch.Tensor], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("mamba2_hybrid-untied")
    model.save_pretrained(tmp_path)
    state = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    save_file({**state, **tensors}, tmp_path / "model.safetensors")
    monkeypatch.setattr(WeightFiles, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(EspanError, match=message):
        load_model(ModelSource(str(tmp_path)))
