"""Exporting takes the memory of a layer, not of a model, and runs where that memory was reserved."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.export.run import run, task_bytes
from pipelines.export.write import export, probe_logits
from pipelines.models.loading import load_model, open_adapted
from pipelines.models.references import ModelSource, resolve_model, write_model_file
from pipelines.models.weights.skeleton import skeleton, tie
from pipelines.models.weights.write import plan_files, write_files
from pipelines.recipe.keys.export import ExportKeys
from pipelines.recipe.parse import read_recipe
from pipelines.system import cluster_session
from pipelines.system.capacity import Capacity, NodeType
from pipelines.system.progress import Progress
from pipelines.system.reserved_tasks import memory_to_reserve, run_reserved
from se_model import HyLoraConfig, Mamba2HybridConfig, apply_hylora, load_adapter
from tests.se_model.tiny_models import tiny_model
from tests.tolerances import F32, within

MIB = 1 << 20
LARGE = Mamba2HybridConfig(
    vocab_size=2048,
    hidden_size=1024,
    num_hidden_layers=25,
    attn_layer_indices=[6],
    num_attention_heads=8,
    head_dim=64,
    rotary_dim=32,
    initializer_range=0.2,
)
RECIPE = """
name: release
seed: 1
workspace: {workspace}
stages:
  release:
    export: {{model: {model}}}
"""


def context_in(folder: Path, model: Path) -> Context:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(workspace=folder, model=model))
    (folder / "release").mkdir()
    return Context("release", str(folder / "release"), 1, {}, str(folder), read_recipe(recipe).as_dict())


def tuned(base: Any, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> ModelSource:
    """Saves `base` in `dtype` below `folder`, and an adapter that moved every tensor that trains."""
    base.to(dtype).save_pretrained(folder / "base", max_shard_size="60KB")
    adapted = apply_hylora(base, HyLoraConfig(rank=2, alpha=4, **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return ModelSource(str(folder / "base"), adapter=str(folder / "adapter"))


def stage_for(source: ModelSource, folder: Path, **keys: Any) -> ExportKeys:
    write_model_file(str(folder), source)
    return ExportKeys.model_validate({"model": str(folder), **keys})


# Run in a process of its own, whose memory is then the export's.
EXPORTER = """
import json, sys
from pathlib import Path
import deepspeed, peft, transformers
from pipelines.export.run import _export
from pipelines.models.loading import open_adapted
from pipelines.models.references import resolve_model
from tests.real_size.test_streamed_export import context_in, stage_for

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024

folder, small = Path(sys.argv[1]), Path(sys.argv[2])
# What is imported late is imported here.
_export(stage_for(resolve_model(str(small), {}), small), context_in(small, small), False)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
_export(stage_for(resolve_model(str(folder), {}), folder), context_in(folder, folder), False)
print(json.dumps({"grown": memory("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 330 MB in bf16, in files of at most 70 MB, and an adapter of it."""
    folder = tmp_path_factory.mktemp("large")
    model = skeleton(LARGE, torch.bfloat16)
    tie(model, set(model.all_tied_weights_keys))
    (folder / "base").mkdir()
    shapes = dict(model.named_parameters())
    files = plan_files(model, shapes, 70_000_000)
    write_files(model, files, lambda name: torch.full(shapes[name].shape, 0.01).bfloat16(), folder / "base")
    LARGE.save_pretrained(folder / "base")
    small = Mamba2HybridConfig(
        **{**LARGE.to_dict(), "num_hidden_layers": 7, "hidden_size": 64, "vocab_size": 64}
    )
    source = tuned(AutoModelForCausalLM.from_config(small), folder / "small", torch.bfloat16)
    write_model_file(str(folder / "small"), source)
    hidden, inner = LARGE.hidden_size, 3 * 8 * 64
    layer = "base_model.model.backbone.layers.6.mixer.in_proj.lora_{}.weight"
    tensors = {
        layer.format("A"): torch.full((2, hidden), 0.01),
        layer.format("B"): torch.full((inner, 2), 0.01),
        "base_model.model.backbone.embedding.weight": torch.full((2048, hidden), 0.02),
        "base_model.model.lm_head.weight": torch.full((2048, hidden), 0.02),
    }
    (folder / "adapter").mkdir()
    save_file(tensors, folder / "adapter/adapter_model.safetensors")
    configuration = json.loads((folder / "small/adapter/adapter_config.json").read_text())
    configuration["target_modules"] = ["backbone.layers.6.mixer.in_proj"]
    configuration["modules_to_save"] = ["backbone.embedding", "tied.embed_tokens"]
    (folder / "adapter/adapter_config.json").write_text(json.dumps(configuration))
    write_model_file(str(folder), ModelSource(str(folder / "base"), adapter=str(folder / "adapter")))
    return folder


def test_an_export_grows_by_less_than_a_file_of_the_checkpoint_and_the_embeddings(large: Path) -> None:
    files = [file.stat().st_size for file in (large / "base").glob("*.safetensors")]
    assert len(files) >= 5
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXPORTER, str(large), str(large / "small")],
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    grown = json.loads(done.stdout.splitlines()[-1])["grown"]
    embeddings = 4 * 2048 * LARGE.hidden_size
    assert grown < 1.3 * (max(files) + embeddings)
    assert grown < task_bytes(resolve_model(str(large), {}))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mamba2_hybrid", "bamba", "jamba", "zamba2"])
def test_a_merged_export_is_what_peft_merges_in_the_models_own_type(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = tuned(tiny_model(name), tmp_path, dtype)
    (written,) = export(stage_for(source, tmp_path), context_in(tmp_path, tmp_path))
    assert written["precision"] == str(dtype).removeprefix("torch.")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "release/merged", dtype="auto")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = load_adapter(base, tmp_path / "adapter").merge_and_unload()
    for (key, tensor), (_, wanted) in zip(
        merged.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor, wanted.to(dtype), rtol=0, atol=0, msg=key)


def test_a_model_that_runs_layer_by_layer_has_the_logits_of_the_one_that_is_loaded(tmp_path: Path) -> None:
    source = tuned(tiny_model("zamba2"), tmp_path)
    opened = open_adapted(source, torch.float32)
    assert torch.equal(probe_logits(opened), probe_logits(load_model(source)))
    assert all(parameter.is_meta for parameter in opened.model.parameters())


def test_an_adapter_that_merges_otherwise_is_merged_as_a_whole_and_that_is_said(
    tmp_path: Path, this_machine: None
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        base, LoraConfig(target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    source = ModelSource(str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    said = StringIO()
    context = replace(context_in(tmp_path, tmp_path), progress=Progress(said))
    run(stage_for(source, tmp_path, format="both"), context)
    assert "sets use_dora: the whole model is loaded" in said.getvalue()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trained = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "release/merged").eval()
    torch.testing.assert_close(probe_logits(merged), probe_logits(trained), **within(F32))


@pytest.fixture(scope="module")
def this_machine() -> Iterator[None]:
    """A Ray head with two CPUs and 3 GiB for tasks, as if a recipe had started it here."""
    options: dict[str, Any] = {"num_cpus": 2, "_memory": 3072 * MIB, "include_dashboard": False}
    ray.init(address="local", log_to_driver=False, **options)
    before = cluster_session._session
    cluster_session._session = cluster_session.RaySession("local", True)
    yield
    cluster_session._session = before
    ray.shutdown()


def free_memory(expected: float = 0.0) -> float:
    """What tasks may still reserve; Ray learns of it late, so this waits a while for `expected`."""
    deadline = time.monotonic() + 20
    while abs((free := float(ray.available_resources()["memory"])) - expected) > MIB:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return free


SCALED = NodeType("large", {"CPU": 8.0}, most=4, scaled=True)


def test_a_task_holds_the_memory_that_it_reserves(this_machine: None) -> None:
    assert free_memory(expected=3072 * MIB) == pytest.approx(3072 * MIB, abs=MIB)
    left = (3072 - 512) * MIB
    found = run_reserved(free_memory, left, memory=512 * MIB, label="work", progress=Progress(StringIO()))
    assert found == pytest.approx(left, abs=MIB)


def test_a_machine_that_is_too_small_is_told_so_at_once(this_machine: None) -> None:
    with pytest.raises(EspanError, match=r"work needs 8\.0 GiB of memory, and this machine has 3\.0 GiB"):
        run_reserved(free_memory, memory=8192 * MIB, label="work", progress=Progress(StringIO()))


def test_memory_is_reserved_where_a_node_that_can_be_started_has_it() -> None:
    said = StringIO()
    with_memory = replace(SCALED, resources={"CPU": 8.0, "memory": 64.0 * 1024 * MIB})
    reserve = partial(memory_to_reserve, 8192 * MIB, {"CPU": 1.0}, label="work", progress=Progress(said))
    assert reserve(there=Capacity((with_memory,), local=False)) == 8192 * MIB
    assert said.getvalue() == ""
    # An autoscaler would never start a node of a type that says nothing of its memory.
    assert reserve(there=Capacity((SCALED,), local=False)) == 0
    assert "does not say how much" in said.getvalue()
