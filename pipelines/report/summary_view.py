"""The top of the page: one sentence and a few numbers."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.report.blocks import Tile
from pipelines.report.evaluations import Evaluation, Outcome
from pipelines.report.text import change, count, percent, points


def tiles(found: Sequence[Evaluation]) -> list[Tile]:
    """Recall and perplexity at the greatest length, and how they changed."""
    outcome = Outcome.of(found)
    if outcome is None:
        return []
    return [tile for tile in (_recall_tile(outcome), _perplexity_tile(outcome)) if tile]


def lead(found: Sequence[Evaluation]) -> str:
    """One sentence that says what the run came to; empty where there is nothing to compare."""
    outcome = Outcome.of(found)
    if outcome is None or outcome.before is None or not outcome.after.scores.recall:
        return ""
    before, after = outcome.before, outcome.after
    length = after.scores.recall_lengths[-1]
    old, new = before.scores.recall_at(length), after.scores.recall_at(length)
    if old is None or new is None:
        return ""
    best = "The best recall" if outcome.best_of_many else "Recall"
    if abs(new - old) <= outcome.noise(length):
        values = f"{percent(old)} ({before.stage}), {percent(new)} ({after.stage})"
        return f"{best} at {count(length)} tokens did not change beyond its error: {values}."
    verb = "rose" if new > old else "fell"
    values = f"from {percent(old)} ({before.stage}) to {percent(new)} ({after.stage})"
    return f"{best} at {count(length)} tokens {verb} {values}."


def _recall_tile(outcome: Outcome) -> Tile | None:
    after = outcome.after.scores
    if not after.recall:
        return None
    length = after.recall_lengths[-1]
    value = after.recall_at(length) or 0.0
    label = f"{'Best recall' if outcome.best_of_many else 'Recall'} at {count(length)} tokens"
    earlier = outcome.before.scores.recall_at(length) if outcome.before else None
    if outcome.before is None or earlier is None:
        return Tile(label, percent(value), f"± {percent(after.recall_error_at(length), 1)}")
    beyond_noise = abs(value - earlier) > outcome.noise(length)
    tone = ("good" if value > earlier else "bad") if beyond_noise else ""
    return Tile(label, percent(value), f"from {percent(earlier)}", points(value - earlier), tone)


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
