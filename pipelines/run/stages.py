"""The functions behind a kind of stage, imported on first use."""

from __future__ import annotations

from functools import cache

from pipelines.context import Check, Runner
from pipelines.kinds import StageKind, load


@cache
def check_of(kind: StageKind) -> Check:
    """Returns what is asked of a kind of stage before anything starts."""
    if kind.check is None:
        return Check()
    found: Check = load(kind.check)
    return found


@cache
def runner_of(kind: StageKind) -> Runner:
    """Returns what does the work of a kind of stage."""
    found: Runner = load(kind.run)
    return found
