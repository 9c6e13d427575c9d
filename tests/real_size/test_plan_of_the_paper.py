"""`espan plan` of the paper's own training, by hub names, where neither GPUs nor weights are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from benchmarks.measure import saved_bytes
from tests.real_size.hub_cache import add_snapshot, offline_environment
from tests.real_size.published import MAMBA2ATTN_2_7B

ROOT = Path(__file__).parents[2]
RECIPE = """\
name: mamba2-hybrid-8k
workspace: {folder}/run
seed: 17
stages:
  corpus:
    prepare:
      sources:
        - {{path: "{folder}/books/*.jsonl", text: text, weight: 0.7}}
        - {{path: "{folder}/code/*.jsonl", text: content, weight: 0.3}}
      tokenizer: EleutherAI/gpt-neox-20b
      sequence_length: 8192
      packing: documents
  tuned:
    train:
      data: corpus
      model: state-spaces/mamba2attn-2.7b
      attention: {{kind: span, chunk_sizes: [2048, 4096], block_size: 32, top_k: 8}}
      hylora: {{rank: 32, alpha: 64}}
      steps: 1000
      tokens_per_step: 524288
      workers: 8
      context_parallel: 1
      deepspeed: {{zero: 2}}
      learning_rate: 2.0e-4
{keys}
  scores:
    evaluate:
      {{model: tuned, attention: full, perplexity: {{data: corpus, split: train, lengths: [8192]}}}}
  release:
    export: {{model: tuned, format: merged}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, and a hub cache whose weights nothing reads before training."""
    folder = tmp_path_factory.mktemp("paper")
    for name, column in (("books", "text"), ("code", "content")):
        (folder / name).mkdir()
        (folder / name / "a.jsonl").write_text(json.dumps({column: "a b a"}) + "\n")
    configuration = json.dumps(MAMBA2ATTN_2_7B).encode()
    torch.save({}, folder / "weights.bin")
    add_snapshot(
        folder / "hub",
        "state-spaces/mamba2attn-2.7b",
        {"config.json": configuration, "pytorch_model.bin": folder / "weights.bin"},
    )
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<|endoftext|>": 2}, "a"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    add_snapshot(
        folder / "hub",
        "EleutherAI/gpt-neox-20b",
        {
            "config.json": b'{"model_type": "gpt_neox"}',
            "tokenizer.json": words.to_str().encode(),
            "tokenizer_config.json": json.dumps(settings).encode(),
        },
    )
    return folder


def plan(folder: Path, *keys: str) -> subprocess.CompletedProcess[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder, keys="\n".join(f"      {key}" for key in keys)))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), **offline_environment(folder / "hub")}
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", "plan", str(recipe)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def gib(text: str, part: str) -> float:
    """A part of a memory line, in GiB."""
    found = re.search(rf"{part} ([\d.]+) (MiB|GiB)", text)
    assert found, f"no {part} in {text!r}"
    return float(found[1]) / (1024 if found[2] == "MiB" else 1)


def test_shapes_and_memory_are_planned_where_nothing_can_run(folder: Path) -> None:
    planned = plan(folder, "precision: fp32")
    assert planned.returncode == 0, planned.stderr
    assert "shapes: 64 rows of 8,192 tokens a step: 8 workers x 8 micro-batches x 1 rows" in planned.stdout
    memory = next(
        line for line in planned.stdout.splitlines() if " a worker" in line and "activations" in line
    )
    # 2.83 billion numbers with HyLoRA's, of which 135 million train: with AdamW's two and their own, 12 bytes
    # for an eighth of these.
    assert gib(memory, "weights") == pytest.approx(10.6, abs=0.1)
    assert gib(memory, "optimizer") == pytest.approx(135_037_440 * 12 / 8 / 2**30, abs=0.01)
    # 58 Mamba-2 blocks of 1.86 GiB each, of which 20 MiB are the recurrence's, and six of attention.
    assert 58 * 1.86 < gib(memory, "activations") < 140
    assert not planned.stderr, planned.stderr


def test_what_does_not_fit_its_gpus_is_refused_with_the_key_that_makes_it_fit(folder: Path) -> None:
    refused = plan(folder, "precision: fp32", "gpu: {memory: 24GiB}")
    assert refused.returncode == 2
    line = refused.stderr.strip()
    assert "\n" not in line
    assert re.search(
        r"a worker needs 12\d\.\d GiB \(weights 10\.\d GiB, .*\), and a GPU .* has 24\.0 GiB", line
    )
    advice = line.rpartition("it fits with ")[2]
    assert advice == "activation_checkpointing: true"
    accepted = plan(folder, "precision: fp32", "gpu: {memory: 24GiB}", advice)
    assert accepted.returncode == 0, accepted.stderr
    assert re.search(
        r"memory: [\d.]+ GiB a worker of 24\.0 GiB \(a GPU \(gpu\.memory\)\), at its peak ", accepted.stdout
    )
    assert "host memory: about" in accepted.stdout


def test_a_blocks_memory_is_what_autograd_saves() -> None:
    from pipelines.train.plan.memory.passes import Batch, Skeleton
    from se_model import Mamba2HybridConfig, SpanConfig
    from se_model.hybrid.modelling import HybridBlock
    from se_model.hybrid.published import translate_published_config

    configuration = Mamba2HybridConfig(**translate_published_config(MAMBA2ATTN_2_7B))
    with torch.device("meta"):
        block = HybridBlock(configuration, 0)
        hidden = torch.empty(1, 8192, 2560, requires_grad=True)
        expected = saved_bytes(lambda: block(hidden), block.parameters())
    assert expected == pytest.approx(1.86 * 2**30, rel=0.01)

    skeleton = Skeleton(configuration, SpanConfig(), None, torch.float32)
    stretches = skeleton.run(Batch(1, 8192, packed=False), checkpointing=False, gpu=False)
    forward = [stretch.change for stretch in stretches if stretch.name == "forward"]
    assert len(forward) == 64
    assert forward[1] == pytest.approx(expected, rel=0.02)
