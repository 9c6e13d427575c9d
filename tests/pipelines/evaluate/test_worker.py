"""What a worker scores with is what the recipe asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines.errors import EspanError
from pipelines.evaluate.worker import Scorer
from pipelines.models.references import ModelSource
from pipelines.recipe.keys.attention import FullSection
from tests.tolerances import F32, within


def scorer(folder: Path, recurrence: str) -> Scorer:
    return Scorer(
        model=ModelSource(str(folder)),
        attention=FullSection(),
        dtype=torch.float32,
        seed=0,
        cpus=1,
        gpus=0,
        recurrence=recurrence,
    )


def test_every_recurrence_is_computed_by_the_backend_that_is_asked_for(model_folder: Path) -> None:
    found: list[Tensor] = []
    for name in ("auto", "chunked", "naive"):
        worker = scorer(model_folder, name).load()
        told = [getattr(each, "recurrence_backend", None) for each in worker.model.modules()]
        assert set(told) == {None, name}
        tokens = torch.arange(40)[None] + 3
        rows = torch.zeros(30, dtype=torch.long)
        found.append(worker.predict(tokens, rows, torch.arange(9, 39), tokens[0, 10:]).log_likelihoods)
    torch.testing.assert_close(found[1], found[0], **within(F32))
    torch.testing.assert_close(found[2], found[0], **within(F32))


def test_a_backend_that_this_worker_cannot_have_is_refused_before_anything_is_scored(
    model_folder: Path,
) -> None:
    with pytest.raises(EspanError, match="recurrence: library computes on GPUs, and the workers have none"):
        scorer(model_folder, "library").load()
