"""One trial of a study: what it trains and scores, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.recipe.keys.train import TrainKeys

TRAINED = "trained"
"""What a trial's evaluation calls the model that the trial trained."""


@dataclass(frozen=True)
class Trial:
    """What one trial does.

    Attributes:
        name: also its folder's name.
        seed: of its training; its scores use the study's seed, so that all trials answer the same questions.
        label: what it varies, for tables: column -> value.
        train: its training; None scores `model` as it is.
        model: what is scored where nothing is trained.
    """

    name: str
    seed: int
    label: Mapping[str, str]
    train: TrainKeys | None
    model: str
