"""The top of the page: one sentence and a few numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipelines.evaluate.scores import Mean
from pipelines.report.blocks import Tile
from pipelines.report.evaluations import Evaluation, Outcome
from pipelines.report.text import between, change, count, percent, points


def tiles(found: Sequence[Evaluation]) -> list[Tile]:
    """Recall and perplexity at the greatest length, and how they changed."""
    outcome = Outcome.of(found)
    if outcome is None:
        return []
    return [tile for tile in (_recall_tile(outcome), _perplexity_tile(outcome)) if tile]


def lead(found: Sequence[Evaluation]) -> str:
    """One sentence that says what the run came to; empty where there is nothing to compare."""
    outcome = Outcome.of(found)
    if outcome is None or outcome.before is None or not outcome.after.scores.of("recall"):
        return ""
    before, after = outcome.before, outcome.after
    length = after.scores.lengths("recall")[-1]
    old, new = before.scores.mean_at("recall", length), after.scores.mean_at("recall", length)
    if old is None or new is None:
        return ""
    best = "The best recall" if outcome.best_of_many else "Recall"
    if not _apart(old, new):
        values = f"{percent(old.value)} ({before.stage}), {percent(new.value)} ({after.stage})"
        return f"{best} at {count(length)} tokens did not change beyond its error: {values}."
    verb = "rose" if new.value > old.value else "fell"
    values = f"from {percent(old.value)} ({before.stage}) to {percent(new.value)} ({after.stage})"
    return f"{best} at {count(length)} tokens {verb} {values}."


def _recall_tile(outcome: Outcome) -> Tile | None:
    after = outcome.after.scores
    lengths = after.lengths("recall")
    found = after.mean_at("recall", lengths[-1]) if lengths else None
    if found is None:
        return None
    length, value = lengths[-1], found.value
    label = f"{'Best recall' if outcome.best_of_many else 'Recall'} at {count(length)} tokens"
    earlier = outcome.before.scores.mean_at("recall", length) if outcome.before else None
    if outcome.before is None or earlier is None:
        return Tile(label, percent(value), f"95%: {between(found.interval)}")
    tone = ("good" if value > earlier.value else "bad") if _apart(earlier, found) else ""
    change_of = points(value - earlier.value)
    return Tile(label, percent(value), f"from {percent(earlier.value)}", change_of, tone)


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
