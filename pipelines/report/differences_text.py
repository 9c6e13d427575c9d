"""Paired differences as rows of text, for a terminal, a file and a page."""

from __future__ import annotations

from pipelines.evaluate.scores import Comparison, Difference

CAPTION = (
    "95% intervals of the difference by bootstrap over pairs of prompts; better and worse are differences "
    "that remain with Holm's correction for all rows shown."
)
NUMERIC = range(1, 7)
"""The columns that are set to the right."""
_MEASURES = {"recall": "recall", "ruler": "RULER", "harness": "lm-eval", "perplexity": "perplexity"}


def columns_of(comparison: Comparison) -> list[str]:
    """Returns the heads of a comparison's table."""
    compared = [comparison.baseline, comparison.label]
    return ["", "length", "prompts", *compared, "difference", "95% interval", "verdict"]


def cells_of(row: Difference) -> list[str]:
    """Returns the cells of one row of a comparison's table; the last is the verdict."""
    share = row.measure in ("recall", "ruler")
    return [
        _what(row),
        "" if row.length is None else f"{row.length:,}",
        f"{row.prompts:,}",
        _number(row.baseline, share),
        _number(row.value, share),
        _signed(row.difference, share) + (" points" if share else ""),
        f"{_signed(row.interval.low, share)} to {_signed(row.interval.high, share)}",
        row.verdict,
    ]


def left_out(comparison: Comparison) -> list[str]:
    """Returns sentences about the prompts that are not compared."""
    sentences = []
    if not comparison.rows:
        sentences.append("No prompt in common.")
    if comparison.unequal:
        sentences.append(
            f"Not compared: {comparison.unequal:,} prompts that differ between the two although they stand "
            "at the same place (another seed, tokenizer or data)."
        )
    if comparison.unmatched:
        sentences.append(f"Not compared: {comparison.unmatched:,} prompts that only one of the two has.")
    return sentences


def _what(row: Difference) -> str:
    measure = _MEASURES[row.measure]
    if row.task is None:
        return f"{measure}: {row.group}, mean" if row.group else f"{measure}: mean of all tasks"
    if row.measure == "perplexity":
        return "perplexity: loss, nats per token"
    metric = f", {row.metric}" if row.measure == "harness" else ""
    return f"{measure}: {row.task}{metric}"


def _number(value: float, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.4g}"


def _signed(value: float, share: bool) -> str:
    return f"{100 * value:+.1f}" if share else f"{value:+.3g}"
