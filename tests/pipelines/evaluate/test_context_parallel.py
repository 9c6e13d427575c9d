"""Prompts and documents that several workers share are scored as by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.evaluate.run import run
from pipelines.recipe.keys.evaluate import EvaluateKeys
from tests.tolerances import F32

pytestmark = pytest.mark.usefixtures("local_ray")

SPAN = {"kind": "span", "selection": "causal", "chunk_sizes": 8, "block_size": 4, "top_k": 2}


def samples(folder: Path, model: Path, shards: Path, **changes: Any) -> list[dict[str, Any]]:
    keys: dict[str, Any] = {
        "model": str(model),
        "recall": {"lengths": [64, 90], "samples": 3, "tasks": ["single", "multi_key"]},
        "perplexity": {"data": str(shards), "lengths": [24, 90], "rows": 3, "scored": 7},
    }
    folder.mkdir()
    run(EvaluateKeys.model_validate(keys | changes), Context("scores", str(folder), 3, {}, str(folder), {}))
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("ranks", "attention"), [(2, {"kind": "full"}), (4, SPAN)])
def test_several_workers_give_the_scores_of_one(
    ranks: int, attention: dict[str, Any], tmp_path: Path, model_folder: Path, shards: Path
) -> None:
    one = samples(tmp_path / "one", model_folder, shards, attention=attention, workers=1)
    shared = samples(tmp_path / "shared", model_folder, shards, attention=attention, context_parallel=ranks)
    for alone, together in zip(one, shared, strict=True):
        for name in ("value", "nats"):
            assert together.pop(name, 0.0) == pytest.approx(alone.pop(name, 0.0), rel=F32)
        assert together == alone


def test_groups_of_workers_are_whole() -> None:
    with pytest.raises(ValidationError, match=r"3 does not divide workers \(4\)"):
        EvaluateKeys.model_validate(
            {"model": "m", "recall": {"lengths": [9]}, "workers": 4, "context_parallel": 3}
        )


def test_attention_that_cannot_share_a_row_is_refused(
    tmp_path: Path, model_folder: Path, shards: Path
) -> None:
    with pytest.raises(EspanError, match="attention 's2' cannot run with its row"):
        samples(
            tmp_path / "s2",
            model_folder,
            shards,
            attention={"kind": "s2"},
            context_parallel=2,
        )
