"""`espan submit` of a real recipe to a real head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import Result

from cluster.connection import connect
from pipelines.errors import EspanError
from pipelines.prepare.shards import read_manifest

if TYPE_CHECKING:
    from conftest import RayHead

RECIPE = """
name: small
workspace: {workspace}
variables: {{texts: texts}}
stages:
  corpus:
    prepare: {{sources: [{{path: '${{texts}}'}}], tokenizer: 'builtin:tiny', sequence_length: 32}}
"""

Command = Callable[..., Result]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory with a recipe and the texts it reads; its workspace lies beside it."""
    root = tmp_path / "project"
    (root / "texts").mkdir(parents=True)
    for number in range(3):
        (root / "texts" / f"{number}.txt").write_text("a quick brown fox jumps over a lazy dog. " * 30)
    (root / "small.yaml").write_text(RECIPE.format(workspace=tmp_path / "workspace"))
    return root


def test_a_recipe_that_succeeds_there_succeeds_here(espan: Command, project: Path) -> None:
    submitted = espan("submit", str(project / "small.yaml"), "--working-dir", str(project))
    assert submitted.exit_code == 0, submitted.output
    assert "espan run small.yaml" in submitted.stdout
    assert "SUCCEEDED" in submitted.stderr.splitlines()[-1]
    assert read_manifest(str(project.parent / "workspace" / "corpus")).rows > 0


def test_a_recipe_that_fails_there_fails_here(espan: Command, project: Path) -> None:
    words = ("submit", str(project / "small.yaml"), "--working-dir", str(project), "--set", "texts=absent")
    submitted = espan(*words, "--no-wait")
    assert submitted.exit_code == 0, submitted.output
    (job,) = submitted.stdout.splitlines()
    assert job.startswith("small-")
    followed = espan("logs", job, "--follow")
    assert followed.exit_code > 0
    assert "small.yaml:" in followed.stdout
    assert "absent" in followed.stdout
    assert f"{job} FAILED" in followed.stderr


def test_nothing_is_submitted_without_the_right_token(
    espan: Command, project: Path, ray_head: RayHead
) -> None:
    client = connect(ray_head.address, ray_head.token_path)
    before = {job.submission_id for job in client.list_jobs()}
    for token_path, reason in ((None, "wants a token"), (ray_head.wrong_token_path, "refused the token")):
        words = ("submit", str(project / "small.yaml"), "--working-dir", str(project))
        submitted = espan(*words, token_path=token_path)
        assert isinstance(submitted.exception, EspanError)
        assert reason in str(submitted.exception)
    assert {job.submission_id for job in client.list_jobs()} == before
