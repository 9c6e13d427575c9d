"""A recipe whose sources and workspace lie in an object store."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pipelines.prepare.shards import ShardReader
from pipelines.run.runner import run_recipe
from pipelines.system import storage
from pipelines.system.progress import Progress

RECIPE = """
name: remote
workspace: {bucket}/runs/remote
stages:
  corpus:
    prepare: {{sources: [{{path: '{bucket}/books/*.txt'}}], tokenizer: 'builtin:tiny', sequence_length: 32}}
"""


@pytest.fixture
def recipe(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where downloaded shards are kept
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for number in range(3):
        text = f"book {number}: a quick brown fox jumps over a lazy dog. " * 20
        storage.write_text_atomic(storage.join(bucket, "books", f"{number}.txt"), text)
    path = tmp_path / "remote.yaml"
    path.write_text(RECIPE.format(bucket=bucket))
    return path


def test_a_run_in_an_object_store_is_whole_and_found_finished_again(recipe: Path, bucket: str) -> None:
    first = run_recipe(recipe, progress=Progress(io.StringIO()))
    assert first.ran == 1
    shards = ShardReader(storage.join(bucket, "runs", "remote", "corpus"))
    assert len(shards) > 0
    assert sum(shards.row(0).doc_lengths) == 32
    assert run_recipe(recipe, progress=Progress(io.StringIO())).ran == 0


def test_a_changed_source_makes_the_stage_run_again(recipe: Path, bucket: str) -> None:
    run_recipe(recipe, progress=Progress(io.StringIO()))
    rows = len(ShardReader(storage.join(bucket, "runs", "remote", "corpus")))
    storage.write_text_atomic(storage.join(bucket, "books", "3.txt"), "one more book. " * 200)
    assert run_recipe(recipe, progress=Progress(io.StringIO())).ran == 1
    assert len(ShardReader(storage.join(bucket, "runs", "remote", "corpus"))) > rows
    assert storage.glob(storage.join(bucket, "runs", "remote", ".previous"))
