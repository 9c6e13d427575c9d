"""Training: packed shards and a model in, an adapter or a model out, on Ray Train with DeepSpeed."""

from pipelines.registry import StageKind, register
from pipelines.train.check import TrainStage, run

register(StageKind("train", TrainStage, run))
