"""RULER in an evaluation: prompts on disk that lm-eval scores alike, sample by sample; none is run twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.evaluate.outcomes import FOLDER
from pipelines.evaluate.run import evaluate
from pipelines.evaluate.scores import Scores, read_samples
from pipelines.recipe.keys.evaluate import EvaluateKeys

RULER = {"lengths": [900, 1000], "tasks": ["niah_single_1", "vt"], "samples": 3}


def scores_of(folder: Path, folder_of_model: Path, **changes: Any) -> Scores:
    keys = {"model": str(folder_of_model), "ruler": RULER, "workers": 1, "tokens_per_batch": 2000}
    folder.mkdir(exist_ok=True)
    return evaluate(
        EvaluateKeys.model_validate(keys | changes), Context("scores", str(folder), 3, {}, str(folder), {})
    )


def samples_of_lm_eval(output: Path, model: Path, include: Path, tasks: list[str]) -> list[dict[str, Any]]:
    """What lm-eval's own command, which knows nothing of this package, writes of each prompt of the tasks."""
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "hf", "--batch_size", "1"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
    command += ["--include_path", str(include), "--tasks", ",".join(tasks)]
    command += ["--output_path", str(output), "--log_samples"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = [next(output.rglob(f"samples_{task}_*.jsonl")) for task in tasks]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.usefixtures("local_ray")
def test_scores_and_texts_are_those_of_lm_evals_own_command_and_kept_when_begun_again(
    tmp_path: Path, byte_model_folder: Path
) -> None:
    output = tmp_path / "scores"
    scores = scores_of(output, byte_model_folder)
    assert [(score.task, score.group, score.length, score.samples) for score in scores.of("ruler")] == [
        ("niah_single_1", "NIAH-S", 900, 3),
        ("niah_single_1", "NIAH-S", 1000, 3),
        ("vt", "VT", 900, 3),
        ("vt", "VT", 1000, 3),
    ]
    assert {score.metric for score in scores.of("ruler")} == {"string_match"}
    assert sum(depth.samples for depth in scores.of("ruler")[0].depths) == 3
    samples = read_samples(str(output))
    assert len(samples) == 12

    names = [f"ruler_{task}_{length}" for task in RULER["tasks"] for length in RULER["lengths"]]
    theirs = samples_of_lm_eval(tmp_path / "lm-eval", byte_model_folder, output / "ruler", names)
    assert [sample.extras["prediction"] for sample in samples] == [each["filtered_resps"] for each in theirs]
    assert [sample.value for sample in samples] == [each[str(each["doc"]["max_length"])] for each in theirs]
    assert len({sample.extras["prediction"][0] for sample in samples}) > 1

    kept = {path.name: path.stat().st_mtime_ns for path in (output / FOLDER / "fp32").iterdir()}
    prompts = {path: path.stat().st_mtime_ns for path in (output / "ruler").rglob("data.arrow")}
    again = scores_of(output, byte_model_folder)
    assert again.tasks == scores.tasks
    assert {path.name: path.stat().st_mtime_ns for path in (output / FOLDER / "fp32").iterdir()} == kept
    assert {path: path.stat().st_mtime_ns for path in (output / "ruler").rglob("data.arrow")} == prompts


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ruler": {**RULER, "lengths": [150, 200_000], "samples": 100}}, r"has no prompts of 150 tokens"),
        ({"model": "builtin:tiny"}, r"words are unknown to the tokenizer"),
        ({"ruler": {**RULER, "tasks": ["niah_single_2"], "essays": "EMPTY"}}, "holds no text file"),
    ],
)
def test_prompts_that_cannot_be_made_are_refused_before_a_model_is_loaded(
    changes: dict[str, Any], words: str, tmp_path: Path, byte_model_folder: Path
) -> None:
    (tmp_path / "empty").mkdir()
    if changes.get("ruler", {}).get("essays"):
        changes = {"ruler": {**changes["ruler"], "essays": str(tmp_path / "empty")}}
    with pytest.raises(EspanError, match=words):
        scores_of(tmp_path / "scores", byte_model_folder, **changes)


def test_generation_over_several_workers_is_refused() -> None:
    with pytest.raises(ValidationError, match="which one worker does alone"):
        EvaluateKeys.model_validate({"model": "m", "ruler": RULER, "context_parallel": 2})
