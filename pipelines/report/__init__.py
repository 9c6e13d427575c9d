"""One self-contained HTML page about a run."""

from pipelines.registry import StageKind, register
from pipelines.report.run import ReportStage, build, run

__all__ = ["KIND", "ReportStage", "build", "run"]

KIND = register(StageKind("report", ReportStage, run))
