"""The format of `samples.jsonl`: what became of every prompt, so that two evaluations can be paired."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import EspanError
from pipelines.evaluate.scores.records import Measure
from pipelines.system import storage

SAMPLES_FILE = "samples.jsonl"


class Sample(BaseModel):
    """One line: one metric of one prompt or document. It may hold more, such as `answers` or `prediction`.

    Attributes:
        measure, task, length, metric: as in `TaskScore`; of perplexity, the task is `perplexity` or
            `position` and the metric `loss`.
        index: of the prompt among those of its task and length.
        prompt: `prompt_hash` of what the model read.
        value: of the metric.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    measure: Measure
    task: str
    length: int | None = None
    index: int
    prompt: str
    metric: str
    value: float

    @property
    def extras(self) -> dict[str, Any]:
        """What the line holds beside the attributes above."""
        return dict(self.model_extra or {})


def prompt_hash(prompt: str | Sequence[int]) -> str:
    """Returns 16 hexadecimal digits that stand for a prompt's text or tokens."""
    content = prompt.encode() if isinstance(prompt, str) else np.asarray(prompt, dtype="<i8").tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def write_samples(folder: str, samples: Iterable[Sample]) -> None:
    """Writes `samples.jsonl` into `folder`, whole or not at all."""
    lines = "".join(sample.model_dump_json() + "\n" for sample in samples)
    storage.write_text_atomic(storage.join(folder, SAMPLES_FILE), lines)


def read_samples(folder: str) -> list[Sample]:
    """Reads `samples.jsonl` of an evaluation's folder.

    Raises:
        EspanError: there is none, or it does not say which prompts were scored, as before `espan-scores/2`.
    """
    path = storage.join(folder, SAMPLES_FILE)
    try:
        # Not splitlines(), which also breaks at characters that a prediction may hold.
        lines = storage.read_text(path).split("\n")
        return [Sample.model_validate_json(line) for line in lines if line]
    except FileNotFoundError as error:
        raise EspanError(f"{path}: not found; run the evaluate stage first") from error
    except ValidationError as error:
        raise EspanError(
            f"{path}: does not say which prompts were scored, as files older than espan-scores/2; "
            "run the evaluate stage again"
        ) from error
