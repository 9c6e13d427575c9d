"""What RULER and lm-eval's tasks cannot do without is looked at before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from pipelines.context import CheckContext
from pipelines.errors import InvalidKeyError
from pipelines.evaluate.check import check
from pipelines.evaluate.harness.tasks import task_manager
from pipelines.recipe.keys.evaluate import EvaluateKeys
from tests.pipelines.evaluate.harness.test_harness import make_tasks
from tests.pipelines.evaluate.language_model.tiny import train_tokenizer
from tests.se_model.tiny_models import CONFIGS

RULER: dict[str, Any] = {"lengths": [900], "tasks": ["niah_single_2"]}


def checked(folder: Path, model: Path, **keys: Any) -> None:
    stage = EvaluateKeys.model_validate({"model": str(model), **keys})
    check(stage, CheckContext("scores", str(folder / "scores"), 0, str(folder), {}))


@pytest.mark.parametrize(
    ("keys", "key", "says"),
    [
        ({"ruler": RULER | {"essays": "FOLDER/nowhere"}}, "ruler.essays", "no such folder"),
        ({"ruler": RULER | {"essays": "FOLDER/empty"}}, "ruler.essays", "holds no text file"),
        (
            {"ruler": RULER | {"tasks": ["qa_squad"], "squad": "FOLDER/squad.json"}},
            "ruler.squad",
            "squad.json: no such file of questions",
        ),
        (
            {"harness": {"tasks": ["pick"], "include": "s3://bucket/tasks"}},
            "harness.include",
            "s3://bucket/tasks: lm-eval reads task files from a folder of this machine",
        ),
    ],
)
def test_texts_and_tasks_that_are_not_there_are_refused(
    keys: dict[str, Any], key: str, says: str, tmp_path: Path, byte_model_folder: Path
) -> None:
    (tmp_path / "empty").mkdir()
    filled = {
        measure: {
            name: value.replace("FOLDER", str(tmp_path)) if isinstance(value, str) else value
            for name, value in section.items()
        }
        for measure, section in keys.items()
    }
    with pytest.raises(InvalidKeyError, match=says) as refused:
        checked(tmp_path, byte_model_folder, **filled)
    assert refused.value.key == key


def test_lengths_beyond_a_models_positions_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "llama"
    config = CONFIGS["llama"]
    config.save_pretrained(model)
    (model / "model.safetensors").write_bytes(save({"weight": torch.zeros(1)}))
    train_tokenizer().save_pretrained(model)
    positions = config.max_position_embeddings
    checked(tmp_path, model, ruler=RULER | {"lengths": [positions]})
    with pytest.raises(InvalidKeyError, match=f"more than the {positions:,} positions of") as refused:
        checked(tmp_path, model, ruler=RULER | {"lengths": [900, positions + 1]})
    assert refused.value.key == "ruler.lengths.1"


def test_lm_evals_own_index_is_read_only_for_names_that_the_folder_lacks(tmp_path: Path) -> None:
    folder = str(make_tasks(tmp_path / "tasks"))
    assert set(task_manager(folder, ["pick", "read"]).all_tasks) == {"pick", "read", "write"}
    assert "arc_easy" in task_manager(folder, ["pick", "arc_easy"]).all_tasks
