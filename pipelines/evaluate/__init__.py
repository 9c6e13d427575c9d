"""Scores a model: needle recall and perplexity, by context length."""

from pipelines.evaluate.check import EvaluateStage, run
from pipelines.registry import StageKind, register

KIND = register(StageKind("evaluate", EvaluateStage, run))
