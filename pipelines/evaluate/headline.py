"""What an evaluation found in one line: the first thing to know of each measure."""

from __future__ import annotations

from pipelines.evaluate.scores import Scores
from pipelines.evaluate.scores.records import TaskMeasure


def headline(scores: Scores) -> str:
    """Returns recall, perplexity and RULER's mean at their greatest lengths, and lm-eval's first metric."""
    said = []
    if recall := means(scores, "recall"):
        said.append(f"recall {recall[max(recall)]:.1%} at {max(recall):,}")
    if scores.perplexity:
        longest = max(scores.perplexity, key=lambda score: score.length)
        said.append(f"perplexity {longest.perplexity:.2f} at {longest.length:,}")
    if ruler := means(scores, "ruler"):
        said.append(f"RULER {ruler[max(ruler)]:.1%} at {max(ruler):,}")
    if harness := scores.of("harness"):
        first, tasks = harness[0], len({score.task for score in harness})
        more = f" and {tasks - 1} more" if tasks > 1 else ""
        said.append(f"{first.task} {first.metric} {first.value:.3g}{more}")
    return ", ".join(said)


def means(scores: Scores, measure: TaskMeasure) -> dict[int, float]:
    """Returns the mean over the tasks of a measure, by length."""
    found = {length: scores.mean_at(measure, length) for length in scores.lengths(measure)}
    return {length: mean.value for length, mean in found.items() if mean is not None}
