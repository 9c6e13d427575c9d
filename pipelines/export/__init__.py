"""Turns a trained model into an ordinary Hugging Face checkpoint, a PEFT adapter, or both."""

from pipelines.export.check import ExportStage, run
from pipelines.registry import StageKind, register

KIND = register(StageKind("export", ExportStage, run))
