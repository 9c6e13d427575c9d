"""The kinds of stage that ship with the pipelines, each imported only when a recipe uses it."""

from __future__ import annotations

from pipelines.registry import declare

for _name in ("prepare", "train", "evaluate", "export", "report"):
    declare(_name, f"pipelines.{_name}")
