"""The top of the page: one sentence and a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.evaluate.scores import Mean, TaskMeasure
from pipelines.report.blocks import Tile
from pipelines.report.evaluations import Evaluation, Outcome, Pairs, headline_measure
from pipelines.report.text import between, change, count, percent, points

_NAMES: Mapping[TaskMeasure, str] = {"recall": "Recall", "ruler": "RULER score"}


def tiles(found: Sequence[Evaluation], pairs: Pairs) -> list[Tile]:
    """Recall or RULER's score, and perplexity at the greatest length, and how they changed."""
    outcome = Outcome.of(found)
    if outcome is None:
        return []
    return [tile for tile in (_task_tile(outcome, pairs), _perplexity_tile(outcome)) if tile]


def lead(found: Sequence[Evaluation], pairs: Pairs) -> str:
    """One sentence that says what the run came to; empty where there is nothing to compare."""
    outcome = Outcome.of(found)
    moved = _Change.of(outcome, pairs) if outcome else None
    if outcome is None or outcome.before is None or moved is None or moved.old is None:
        return ""
    old, new = moved.old.value, moved.new.value
    before, after = outcome.before.stage, outcome.after.stage
    best = f"The best {_uncapitalised(moved.name)}" if outcome.best_of_many else moved.name
    where = f"{best} at {count(moved.length)} tokens"
    if not moved.real:
        return (
            f"{where} did not change beyond its error: {percent(old)} ({before}), {percent(new)} ({after})."
        )
    verb = "rose" if new > old else "fell"
    return f"{where} {verb} from {percent(old)} ({before}) to {percent(new)} ({after})."


@dataclass(frozen=True)
class _Change:
    """A mean over tasks at the greatest length, before and after.

    Attributes:
        name: of what was measured.
        old: None if it was not measured before.
        real: the two differ beyond what chance explains.
    """

    name: str
    length: int
    old: Mean | None
    new: Mean
    real: bool

    @classmethod
    def of(cls, outcome: Outcome, pairs: Pairs) -> _Change | None:
        after = outcome.after.scores
        measure = headline_measure(after)
        if measure is None:
            return None
        length = after.lengths(measure)[-1]
        new = after.mean_at(measure, length)
        old = outcome.before.scores.mean_at(measure, length) if outcome.before else None
        assert new, "a length of a measure has a mean"
        paired = pairs.mean_difference(outcome.after.stage, measure, length)
        real = paired.verdict != "no real difference" if paired else bool(old and _apart(old, new))
        return cls(_NAMES[measure], length, old, new, real)


def _task_tile(outcome: Outcome, pairs: Pairs) -> Tile | None:
    moved = _Change.of(outcome, pairs)
    if moved is None:
        return None
    name = f"Best {_uncapitalised(moved.name)}" if outcome.best_of_many else moved.name
    label, value = f"{name} at {count(moved.length)} tokens", moved.new.value
    if moved.old is None:
        return Tile(label, percent(value), f"95%: {between(moved.new.interval)}")
    old = moved.old.value
    tone = ("good" if value > old else "bad") if moved.real else ""
    return Tile(label, percent(value), f"from {percent(old)}", points(value - old), tone)


def _uncapitalised(name: str) -> str:
    return name if name[:2].isupper() else name[0].lower() + name[1:]


def _apart(one: Mean, other: Mean) -> bool:
    """Says whether two means of different prompts differ beyond 95% (Zou and Donner, 2008)."""
    low, high = (one, other) if one.value <= other.value else (other, one)
    reach = math.hypot(high.value - high.interval.low, low.interval.high - low.value)
    return high.value - low.value > reach


def _perplexity_tile(outcome: Outcome) -> Tile | None:
    after = outcome.after.scores
    if not after.perplexity:
        return None
    last = max(after.perplexity, key=lambda score: score.length)
    label, value = f"Perplexity at {count(last.length)} tokens", f"{last.perplexity:.2f}"
    first = outcome.before.scores.perplexity_at(last.length) if outcome.before else None
    if first is None:
        return Tile(label, value, f"over {count(last.scored_tokens)} tokens")
    tone = (
        "good" if last.perplexity < first.perplexity else "bad" if last.perplexity > first.perplexity else ""
    )
    return Tile(
        label, value, f"from {first.perplexity:.2f}", change(last.perplexity / first.perplexity - 1), tone
    )
