"""The formats of an evaluation: `scores.json`, with every score, and `samples.jsonl`, with every prompt."""

from pipelines.evaluate.scores.differences import Comparison as Comparison
from pipelines.evaluate.scores.differences import Difference as Difference
from pipelines.evaluate.scores.differences import Evaluated as Evaluated
from pipelines.evaluate.scores.differences import compare as compare
from pipelines.evaluate.scores.file import SCORES_FILE as SCORES_FILE
from pipelines.evaluate.scores.file import Mean as Mean
from pipelines.evaluate.scores.file import Scores as Scores
from pipelines.evaluate.scores.records import DepthScore as DepthScore
from pipelines.evaluate.scores.records import Measure as Measure
from pipelines.evaluate.scores.records import PerplexityScore as PerplexityScore
from pipelines.evaluate.scores.records import PositionBin as PositionBin
from pipelines.evaluate.scores.records import PositionLoss as PositionLoss
from pipelines.evaluate.scores.records import RetrievalDepth as RetrievalDepth
from pipelines.evaluate.scores.records import RetrievalScore as RetrievalScore
from pipelines.evaluate.scores.records import TaskMeasure as TaskMeasure
from pipelines.evaluate.scores.records import TaskScore as TaskScore
from pipelines.evaluate.scores.records import Throughput as Throughput
from pipelines.evaluate.scores.samples import SAMPLES_FILE as SAMPLES_FILE
from pipelines.evaluate.scores.samples import Sample as Sample
from pipelines.evaluate.scores.samples import prompt_hash as prompt_hash
from pipelines.evaluate.scores.samples import read_samples as read_samples
from pipelines.evaluate.scores.samples import write_samples as write_samples
