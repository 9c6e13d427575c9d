"""Places in an object store for which there are no credentials are refused in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs
from botocore import UNSIGNED
from fsspec.config import conf

from pipelines.errors import EspanError, RecipeError
from pipelines.run.plan import plan_recipe
from pipelines.system import storage
from pipelines.system.streams import open_binary

ADVICE = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of .*, or run where"
RECIPE = """
name: remote
workspace: {workspace}
stages:
  corpus:
    prepare: {{sources: [{{path: '{source}'}}], tokenizer: 'builtin:tiny', sequence_length: 32}}
"""
ASKED: list[Callable[[str], object]] = [
    storage.exists,
    storage.read_bytes,
    storage.glob,
    storage.remove_folder,
    storage.file_sizes,
    open_binary,
    lambda place: storage.write_text_atomic(place, "text"),
    lambda place: storage.create_exclusively(place, b"lock"),
]


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("ask", ASKED)
def test_whatever_is_asked_of_a_place_without_credentials_is_refused_by_its_url(
    bucket: str, ask: Callable[[str], object]
) -> None:
    place = storage.join(bucket, "run", "stage.json")
    with pytest.raises(EspanError, match=f"^{place} needs credentials of S3: none were found{ADVICE}"):
        ask(place)


@pytest.mark.usefixtures("no_credentials")
def test_an_archive_in_such_a_place_is_refused_alike(bucket: str) -> None:
    with pytest.raises(EspanError, match=f"^{bucket}/a.zip needs credentials of S3"):
        storage.exists(f"zip://a.txt::{bucket}/a.zip")


@pytest.mark.usefixtures("no_credentials")
def test_half_of_the_credentials_and_a_profile_that_is_not_there_are_told_in_the_same_sentence(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:tester")
    with pytest.raises(EspanError, match=f"needs credentials of S3: Partial credentials .*{ADVICE}"):
        storage.exists(bucket)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(EspanError, match=rf"needs credentials of S3: .*\(nobody\) could not be .*{ADVICE}"):
        storage.exists(bucket)


@pytest.mark.usefixtures("no_credentials")
def test_a_plan_names_the_workspace_or_the_source(bucket: str, tmp_path: Path) -> None:
    recipe = tmp_path / "remote.yaml"
    recipe.write_text(RECIPE.format(workspace=f"{bucket}/runs", source=tmp_path / "*.txt"))
    with pytest.raises(EspanError, match=f"^{bucket}/runs.* needs credentials of S3: .*{ADVICE}"):
        plan_recipe(recipe)
    recipe.write_text(RECIPE.format(workspace=tmp_path / "runs", source=f"{bucket}/books/*.txt"))
    where = re.escape(f"{recipe}:6: stages.corpus")
    with pytest.raises(RecipeError, match=f"^{where}.*: {bucket}/books.* needs credentials .*{ADVICE}"):
        plan_recipe(recipe)


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize(
    "options",
    [
        {"key": "test:tester", "secret": "testing"},
        {"client_kwargs": {"aws_access_key_id": "test:tester", "aws_secret_access_key": "testing"}},
    ],
)
def test_configured_keys_are_taken_as_they_are(
    bucket: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conf, "s3", options)
    assert not storage.exists(storage.join(bucket, "nothing"))


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("options", [{"anon": True}, {"config_kwargs": {"signature_version": UNSIGNED}}])
def test_requests_that_nobody_is_to_sign_need_no_keys(
    bucket: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conf, "s3", options)
    with pytest.raises(OSError, match="Bad Request"):  # this server's answer to a request that nobody signed
        storage.read_bytes(storage.join(bucket, "nothing"))
