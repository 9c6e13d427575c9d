"""An evaluation whose prompts, outcomes and scores lie in an object store."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.context import Context
from pipelines.evaluate.outcomes import FOLDER
from pipelines.evaluate.run import evaluate, run
from pipelines.evaluate.scores import Scores, read_samples
from pipelines.recipe.keys.evaluate import EvaluateKeys
from pipelines.system import storage
from pipelines.system.cluster_session import close_ray_session, ray_session
from pipelines.system.filesystems import filesystem
from pipelines.system.progress import Progress

TASKS, LENGTH, SAMPLES = ("niah_single_1", "vt"), 704, 2
KEYS = EvaluateKeys.model_validate(
    {
        "model": "builtin:ruler-tiny",
        "ruler": {"lengths": [LENGTH], "tasks": TASKS, "samples": SAMPLES},
        "tokens_per_batch": LENGTH,
        "workers": 1,
    }
)


@pytest.fixture
def ray(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A session whose workers find the bucket's server, and no other test's."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    close_ray_session()
    ray_session()
    yield
    close_ray_session()


def written(folder: str) -> dict[str, Any]:
    """When each object below a folder was written."""
    file_system, path = filesystem(folder)
    return {name: info["LastModified"] for name, info in file_system.find(path, detail=True).items()}


@pytest.mark.usefixtures("ray")
def test_prompts_are_made_and_scored_once_and_scores_are_written(bucket: str) -> None:
    output = storage.join(bucket, "runs", "ruler", "scores")
    shown = io.StringIO()
    context = Context("scores", output, 3, {}, storage.join(bucket, "runs", "ruler"), {}, Progress(shown))
    scores = evaluate(KEYS, context)
    assert [(score.task, score.length, score.samples) for score in scores.of("ruler")] == [
        (task, LENGTH, SAMPLES) for task in TASKS
    ]
    outcomes, prompts = storage.join(output, FOLDER, "fp32"), storage.join(output, "ruler")
    kept = written(outcomes)
    made = {name: when for name, when in written(prompts).items() if name.endswith("data.arrow")}
    assert (len(kept), len(made)) == (
        len(TASKS),
        len(TASKS),
    )  # so few prompts of a task are answered together

    first = len(shown.getvalue())
    run(KEYS, context)
    assert f"batches scored already: {len(kept)}" in shown.getvalue()[first:]
    assert "scores: prompts" not in shown.getvalue()[first:]
    assert {name: written(prompts)[name] for name in made} == made
    assert not storage.exists(outcomes)
    found = Scores.read(output)
    assert found.tasks == scores.tasks
    assert len(read_samples(output)) == len(TASKS) * SAMPLES
