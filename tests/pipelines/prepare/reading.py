"""Reads a source in parts of a size of choice."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.models.tokenizers import load_tokenizer
from pipelines.prepare.read import Document, Reject, plan_parts, read_part
from pipelines.recipe.keys.prepare import AnySource

TOKENIZER = load_tokenizer("builtin:ruler-tiny").backend_tokenizer


def read(source: AnySource, target_bytes: int = 1 << 20) -> list[Document | Reject]:
    parts = plan_parts([source], target_bytes, documents=3)
    return [item for part in parts for item in read_part(source, part, 1, TOKENIZER)]


def texts(items: Sequence[Document | Reject]) -> list[str]:
    return [item.text for item in items if isinstance(item, Document)]


def reasons(items: Sequence[Document | Reject]) -> list[tuple[int | None, str]]:
    return [(item.record, item.reason) for item in items if isinstance(item, Reject)]
