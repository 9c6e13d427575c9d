"""The memory that an export's task reserves."""

from __future__ import annotations

from pipelines.models.merging import merge_bytes
from pipelines.models.references import ModelSource

PROBE_ROWS, PROBE_TOKENS = 4, 64
"""What a model is run on to prove what was written."""


def task_bytes(source: ModelSource) -> tuple[int, int]:
    """Returns the memory that an export needs, with one layer there and with the whole model, in bytes."""
    return merge_bytes(source, forward_tokens=PROBE_ROWS * PROBE_TOKENS)
