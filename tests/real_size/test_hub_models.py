"""Models and tokenizers by their name on the model hub, from hub caches laid out by hand."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipelines.errors import RecipeError
from pipelines.models import hub
from pipelines.models.builtin import builtin
from pipelines.models.loading import load_model
from pipelines.models.references import ModelSource, external_files, resolve_model, write_model_file
from pipelines.models.tokenizers import load_tokenizer, tokenizer_hash
from pipelines.recipe.parse import read_recipe
from pipelines.run.lineage import FileHashes, identify
from pipelines.run.plan import RecipePlan, plan_recipe
from tests.real_size.hub_cache import add_snapshot, use_offline
from tests.real_size.published import published_files
from tests.se_model.tiny_models import tiny_model

NAME, TOKENIZER = "state-spaces/mamba2attn-tiny", "EleutherAI/gpt-neox-tiny"
RECIPE = """
name: by-name
workspace: {workspace}
stages:
  corpus:
    prepare:
      sources: [{{path: {workspace}/text.txt}}]
      tokenizer: {tokenizer}
      sequence_length: 64
      holdout: 0.5
  tuned:
    train:
      data: corpus
      model: {model}
      attention: {{kind: span, chunk_sizes: [32], block_size: 8, top_k: 2}}
      hylora: {{rank: 4, alpha: 8}}
      steps: 2
      tokens_per_step: 128
      learning_rate: 1.0e-3
  scores:
    evaluate:
      model: {model}
      {scored}
"""
RECALL, PERPLEXITY = "recall: {lengths: [64], samples: 1}", "perplexity: {data: corpus, lengths: [32]}"
Plan = Callable[..., RecipePlan]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All there is of the hub: a published model without a tokenizer, and a tokenizer."""
    folder = tmp_path / "cache"
    add_snapshot(folder, NAME, published_files())
    tokenizer = builtin("tiny")
    add_snapshot(
        folder,
        TOKENIZER,
        {name: tokenizer / name for name in ("tokenizer.json", "tokenizer_config.json")},
    )
    use_offline(folder, monkeypatch)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    (tmp_path / "text.txt").write_text("a quick brown fox jumps over a lazy dog. " * 99)

    def write(model: str = NAME, tokenizer: str = TOKENIZER, scored: str = PERPLEXITY) -> Path:
        path = tmp_path / "recipe.yaml"
        keys = {"model": model, "tokenizer": tokenizer, "scored": scored, "workspace": tmp_path}
        path.write_text(RECIPE.format(**keys))
        return path

    return write


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that answers, and the paths that were asked of it."""
    from huggingface_hub import constants

    paths: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield paths
    server.shutdown()
    server.server_close()


def test_a_model_without_a_tokenizer_is_planned_and_loaded_by_its_name(
    cache: Path, recipe: Callable[..., Path]
) -> None:
    plan = {stage.name: stage.details for stage in plan_recipe(recipe()).stages}
    commit = (cache / "models--state-spaces--mamba2attn-tiny" / "refs" / "main").read_text()
    assert plan["tuned"]["model"] == f"{NAME}@{commit} (from the local cache)"
    source = resolve_model(NAME, {})
    assert (source.base, source.tokenizer) == (f"{NAME}@{commit}", None)
    with torch.no_grad():
        assert load_model(source)(torch.arange(9)[None]).logits.shape == (1, 9, 512)


def test_the_whole_of_a_cached_model_is_used_without_a_question_to_the_hub(
    cache: Path, recipe: Callable[..., Path], asked: list[str]
) -> None:
    files = {name: builtin("tiny") / name for name in ("tokenizer.json", "tokenizer_config.json")}
    add_snapshot(cache, "owner/whole", published_files() | files)
    plan_recipe(recipe(model="owner/whole", scored=RECALL))
    load_model(resolve_model("owner/whole", {}))
    assert asked == []


def test_recall_of_a_model_without_a_tokenizer_is_refused_before_anything_runs(
    cache: Path, recipe: Callable[..., Path]
) -> None:
    with pytest.raises(
        RecipeError, match=rf"recall.tokenizer: recall needs a tokenizer, and {NAME} has none"
    ):
        plan_recipe(recipe(scored=RECALL))
    named = RECALL.replace("samples: 1", f"samples: 1, tokenizer: {TOKENIZER}")
    details = plan_recipe(recipe(scored=named)).stages[-1].details
    assert details["tokenizer"] == hub.pinned(TOKENIZER)


def test_a_tokenizer_that_the_model_has_too_few_embeddings_for_is_refused_before_anything_runs(
    cache: Path, recipe: Callable[..., Path]
) -> None:
    tiny = json.loads(published_files()["config.json"]) | {"vocab_size": 48}
    add_snapshot(cache, "owner/small", published_files(tiny))
    with pytest.raises(RecipeError, match=r"data: its tokenizer, .* words, but owner/small embeds only 48"):
        plan_recipe(recipe(model="owner/small"))


def test_a_revision_is_another_model_and_another_fingerprint(
    cache: Path, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    other = published_files() | {"README.md": b"the second version"}
    second = add_snapshot(cache, NAME, other, revision="refs/pr/2")
    assert resolve_model(f"{NAME}@refs/pr/2", {}).base == f"{NAME}@{second}"
    assert resolve_model(f"{NAME}@{second}", {}).base == f"{NAME}@{second}"
    (stage,) = plan_recipe(recipe(model=f"{NAME}@refs/pr/2")).stages[1:2]
    assert second in stage.details["model"]


def test_a_branch_that_moved_is_another_fingerprint_of_model_and_tokenizer(
    cache: Path, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    def fingerprints() -> dict[str, str]:
        read = read_recipe(recipe())
        known: dict[str, object] = {}
        for stage in read.stages.values():
            known[stage.name] = identify(read, stage, known, FileHashes(str(tmp_path)))  # type: ignore[arg-type]
        return {name: identity.fingerprint for name, identity in known.items()}  # type: ignore[attr-defined]

    before = fingerprints()
    assert fingerprints() == before
    add_snapshot(cache, NAME, published_files() | {"README.md": b"moved"})
    moved = fingerprints()
    assert moved["corpus"] == before["corpus"]
    assert moved["tuned"] != before["tuned"]
    assert moved["scores"] != before["scores"]
    add_snapshot(cache, TOKENIZER, {"tokenizer.json": builtin("tiny") / "tokenizer.json"})
    assert fingerprints()["corpus"] != before["corpus"]


def test_a_tokenizer_by_name_and_revision_is_the_one_in_its_folder(cache: Path) -> None:
    commit = hub.pinned(TOKENIZER).partition("@")[2]
    for reference in (TOKENIZER, f"{TOKENIZER}@main", f"{TOKENIZER}@{commit}"):
        assert tokenizer_hash(load_tokenizer(reference)) == tokenizer_hash(load_tokenizer("builtin:tiny"))


def test_a_snapshot_without_weights_is_named_as_unfinished(cache: Path, recipe: Callable[..., Path]) -> None:
    add_snapshot(cache, "owner/half", {"config.json": published_files()["config.json"]})
    blobs = cache / "models--owner--half" / "blobs"
    (blobs / "0123.incomplete").write_bytes(b"half of the weights")
    message = r"owner/half@\w+ has no weights: .*download was interrupted\) holds only config.json"
    with pytest.raises(RecipeError, match=message):
        plan_recipe(recipe(model="owner/half"))


def test_a_shard_that_the_cache_lacks_is_named(
    cache: Path, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "llama", max_shard_size="40KB")
    files = {path.name: path for path in (tmp_path / "llama").iterdir()}
    missing = max(name for name in files if name.endswith(".safetensors"))
    add_snapshot(cache, "owner/llama", files)
    (cache / "models--owner--llama" / "blobs").joinpath(
        *(cache / "models--owner--llama" / "snapshots").glob(f"*/{missing}")
    ).resolve().unlink()
    with pytest.raises(
        RecipeError, match=rf"owner/llama \(commit \w+\) is incomplete .* lacks {missing}, and"
    ):
        plan_recipe(recipe(model="owner/llama"))


def test_weights_in_torchs_own_format_load_and_nothing_but_tensors_is_unpickled(
    cache: Path, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    files = {name: tmp_path / name for name in ("config.json", "pytorch_model.bin")}
    add_snapshot(cache, "owner/bin", files)
    loaded = load_model(resolve_model("owner/bin", {}))
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_an_adapter_on_the_hub_is_a_model_over_its_base_at_the_revision_it_names(cache: Path) -> None:
    base = hub.pinned(NAME)
    configuration = {
        "peft_type": "LORA",
        "base_model_name_or_path": NAME,
        "revision": base.partition("@")[2],
    }
    add_snapshot(cache, "owner/adapter", {"adapter_config.json": json.dumps(configuration).encode()})
    source = resolve_model("owner/adapter", {})
    assert (source.base, source.adapter) == (base, hub.pinned("owner/adapter"))


def test_a_name_that_is_not_cached_is_refused_by_name(cache: Path, recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"'owner/none' is not in the local cache"):
        plan_recipe(recipe(model="owner/none"))


def test_a_name_that_the_hub_does_not_have_is_refused_with_what_it_says(
    cache: Path, recipe: Callable[..., Path], asked: list[str]
) -> None:
    with pytest.raises(RecipeError, match=r"the model hub does not give 'owner/none'"):
        plan_recipe(recipe(model="owner/none"))
    assert any("owner/none" in path for path in asked)


def test_the_content_of_a_model_is_its_weights_wherever_they_lie(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    write_model_file(str(tmp_path / "own"), ModelSource("."))
    assert external_files(str(tmp_path / "own")) == (str(tmp_path / "own"),)
    tuned = tmp_path / "tuned"
    (tuned / "model").mkdir(parents=True)
    write_model_file(str(tuned), ModelSource(hub.pinned(NAME), adapter="./model"))
    assert external_files(str(tuned)) == (
        hub.MARK + hub.pinned(NAME),
        str(tuned / "model"),
        str(tuned / "model.json"),
    )
