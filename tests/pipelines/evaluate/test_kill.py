"""An evaluation whose process is killed goes on from the batches that it had scored."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.context import Context
from pipelines.evaluate.outcomes import FOLDER
from pipelines.evaluate.run import evaluate
from pipelines.evaluate.scores import read_samples
from pipelines.recipe.keys.evaluate import EvaluateKeys
from tests.processes import PATIENCE_SECONDS, running_program

DRIVER = """
import pickle, sys
from pathlib import Path
from pipelines.context import Context
from pipelines.evaluate.run import evaluate
from pipelines.system.cluster_session import ray_session
ray_session()
keys, output = pickle.loads(Path(sys.argv[1]).read_bytes())
evaluate(keys, Context("scores", output, 3, {}, output, {}))
"""


def kept(output: Path) -> dict[str, int]:
    """When each batch was written."""
    folder = output / FOLDER / "fp32"
    files = folder.glob("*.json") if folder.exists() else ()
    return {path.name: path.stat().st_mtime_ns for path in files}


def run_and_kill(keys: EvaluateKeys, output: Path, *, batches: int) -> None:
    task, log = output / "task", output / "driver.log"
    task.write_bytes(pickle.dumps((keys, str(output))))
    with running_program(DRIVER, task, log) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(kept(output)) < batches:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.01)


@pytest.mark.usefixtures("local_ray")
def test_no_batch_is_scored_twice_and_scores_are_those_of_an_undisturbed_run(
    tmp_path: Path, model_folder: Path, shards: Path
) -> None:
    keys: dict[str, Any] = {
        "model": str(model_folder),
        "recall": {"lengths": [64, 96], "samples": 60, "tasks": ["single"]},
        "perplexity": {"data": str(shards), "lengths": [24, 96], "rows": 4},
        "tokens_per_batch": 96,
        "workers": 1,
    }
    stage = EvaluateKeys.model_validate(keys)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for output in (killed, undisturbed):
        output.mkdir()
    run_and_kill(stage, killed, batches=5)
    before = kept(killed)
    assert 5 <= len(before) < 60
    scores = {
        output: evaluate(stage, Context("scores", str(output), 3, {}, str(output), {}))
        for output in (killed, undisturbed)
    }
    assert before.items() <= kept(killed).items()
    assert kept(killed).keys() == kept(undisturbed).keys()
    assert scores[killed].tasks == scores[undisturbed].tasks
    assert read_samples(str(killed)) == read_samples(str(undisturbed))
