"""Reads a source in parts of a size of choice."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.prepare.read import Document, Reject, plan_parts, read_part
from pipelines.recipe.keys.prepare import NeedlesSource, PathSource


def read(source: PathSource | NeedlesSource, target_bytes: int = 1 << 20) -> list[Document | Reject]:
    parts = plan_parts([source], target_bytes, documents=3)
    return [item for part in parts for item in read_part(source, part, seed=1)]


def texts(items: Sequence[Document | Reject]) -> list[str]:
    return [item.text for item in items if isinstance(item, Document)]


def reasons(items: Sequence[Document | Reject]) -> list[tuple[int | None, str]]:
    return [(item.record, item.reason) for item in items if isinstance(item, Reject)]
