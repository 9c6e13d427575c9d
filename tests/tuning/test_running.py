import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.run.runner import run_recipe
from tuning.study.table import RESULTS_FILE, TABLE_FILE

PATIENCE_SECONDS = 240

RECIPE = """
name: studies
workspace: {workspace}
seed: 3
stages:
  corpus:
    prepare:
      sources: [{{needles: {{tokens: 127}}, documents: 24}}]
      tokenizer: builtin:tiny
      sequence_length: 128
      holdout: 0.1
  search:
    tune:
      train: &train
        data: corpus
        model: builtin:tiny
        attention: {{kind: span, chunk_sizes: [64], block_size: 16, top_k: 2}}
        hylora: {{rank: 4, alpha: 8}}
        steps: 2
        tokens_per_step: 256
        learning_rate: 1.0e-3
      evaluate: &evaluate
        recall: {{lengths: [64, 128], samples: 4, tasks: [single]}}
      space: {{attention.top_k: [1, 2]}}
      concurrent: 2
  comparison:
    compare:
      train: *train
      evaluate: *evaluate
      variants: {{untrained: null, full: {{attention: {{kind: full}}}}}}
      seeds: [0]
      floor: untrained
      ceiling: full
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "studies.yaml"
    path.write_text(RECIPE.format(workspace=tmp_path / "run"))
    return path


def test_studies_run_to_the_end_write_their_tables_and_keep_finished_trials(
    recipe: Path, tmp_path: Path
) -> None:
    run_recipe(recipe)
    search, comparison = tmp_path / "run" / "search", tmp_path / "run" / "comparison"
    results = json.loads((search / RESULTS_FILE).read_text())
    assert results["format"] == "espan-study/1"
    assert (results["finished"], results["trials"]) == (2, 2)
    assert sorted(row["attention.top_k"] for row in results["rows"]) == ["1", "2"]
    found = [
        json.loads((search / f"trial-00{trial}" / "trial.json").read_text())["retrieval"] for trial in (0, 1)
    ]
    shares = ["asked", "asked_by_head", "chance", "distinct", "not_asked", "not_asked_by_head"]
    assert [sorted(each) for each in found] == [shares] * 2
    recalls = [float(row["recall at 128"]) for row in results["rows"]]
    assert recalls == sorted(recalls, reverse=True)
    assert len((comparison / TABLE_FILE).read_text().splitlines()) == 2 + 2  # head and variants
    seeds = [
        (row["variant"], row["seed"])
        for row in json.loads((comparison / RESULTS_FILE).read_text())["outcomes"]
    ]
    assert seeds == [("untrained", 0), ("full", 0)]

    # A study that was cut off before its end: one trial is missing, the other must not run again.
    (search / "stage.json").unlink()
    (search / "trial-001" / "trial.json").unlink()
    kept = (search / "trial-000" / "trial.json").stat().st_mtime_ns
    before = (search / RESULTS_FILE).read_text()
    run_recipe(recipe)
    assert (search / "trial-000" / "trial.json").stat().st_mtime_ns == kept
    assert (search / "trial-001" / "trial.json").exists()
    assert json.loads((search / RESULTS_FILE).read_text())["rows"] == json.loads(before)["rows"]


def test_a_study_that_is_stopped_is_not_taken_for_finished(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("steps: 2\n", "steps: 100000\n"))
    log = (tmp_path / "log").open("w")
    espan = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "run", str(recipe)], stdout=log, stderr=log
    )
    search = tmp_path / "run" / "search"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (search / "trial-000" / "model" / "metrics.jsonl").exists():
        assert espan.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    espan.send_signal(signal.SIGTERM)
    assert espan.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM
    assert "run the same command again" in (tmp_path / "log").read_text()
    assert not (search / "stage.json").exists()
    assert not (search / "trial-000" / "trial.json").exists()
