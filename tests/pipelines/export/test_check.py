"""What an export stage refuses before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.context import CheckContext, EarlierStage
from pipelines.errors import InvalidKeyError
from pipelines.export.check import check
from pipelines.recipe.keys.export import ExportKeys
from pipelines.recipe.keys.section import StageKeys
from pipelines.recipe.keys.train import TrainKeys

TRAIN: dict[str, Any] = {"data": "corpus", "model": "builtin:tiny", "attention": "full", "steps": 1}
TRAIN |= {"tokens_per_step": 64, "learning_rate": 1e-3}


def context(hylora: dict[str, Any] | None) -> CheckContext:
    earlier = {
        "tuned": EarlierStage(
            "tuned", "train", TrainKeys.model_validate(TRAIN | {"hylora": hylora}), "/w/tuned"
        ),
        "after": EarlierStage("after", "evaluate", StageKeys(), "/w/after"),
    }
    return CheckContext("release", "/w/release", 0, "/w", earlier)


@pytest.mark.parametrize("form", ["adapter", "both"])
def test_there_is_no_adapter_of_a_model_that_trained_whole(form: str) -> None:
    stage = ExportKeys.model_validate({"model": "tuned", "format": form})
    with pytest.raises(InvalidKeyError, match="has no adapter; use merged") as refused:
        check(stage, context(None))
    assert refused.value.key == "format"
    check(stage, context({"rank": 4}))


def test_scores_come_from_evaluate_stages() -> None:
    with pytest.raises(InvalidKeyError, match="is of kind train") as refused:
        check(ExportKeys(model="tuned", scores=("after", "tuned")), context(None))
    assert refused.value.key == "scores.1"


def test_a_misspelt_model_is_told_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidKeyError, match="tuned"):
        check(ExportKeys(model="tunned"), context(None))
