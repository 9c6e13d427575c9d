"""Searches and comparisons over whole trainings: the stages `tune` and `compare`, on Ray Tune."""

from __future__ import annotations

from pipelines.registry import StageKind, register
from tuning.compare.stage import CompareStage
from tuning.compare.stage import run as run_compare
from tuning.sweep.stage import TuneStage
from tuning.sweep.stage import run as run_tune

register(StageKind("tune", TuneStage, run_tune))
register(StageKind("compare", CompareStage, run_compare))
