"""Reads `espan-scores/1`, which finished runs hold: standard errors in the place of intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.evaluate.scores.records import perplexity_of
from pipelines.statistics import NORMAL_95

EARLIER_FORMAT = "espan-scores/1"


def converted(earlier: Mapping[str, Any], format_name: str) -> dict[str, Any]:
    """Returns the content of an earlier `scores.json` as today's format has it.

    Raises:
        KeyError, TypeError: it does not hold what its format says.
    """
    found = {name: value for name, value in earlier.items() if name not in ("format", "recall", "perplexity")}
    return {
        **found,
        "format": format_name,
        "tasks": [_task(score) for score in earlier.get("recall", ())],
        "perplexity": [_perplexity(score) for score in earlier.get("perplexity", ())],
    }


def _task(score: Mapping[str, Any]) -> dict[str, Any]:
    half, value = NORMAL_95 * score["standard_error"], score["recall"]
    return {
        "measure": "recall",
        "metric": "recall",
        "value": value,
        "interval": {"low": max(0.0, value - half), "high": min(1.0, value + half)},
        **{name: score[name] for name in ("task", "length", "samples", "answers", "exact")},
    }


def _perplexity(score: Mapping[str, Any]) -> dict[str, Any]:
    half, loss = NORMAL_95 * score["standard_error"], score["loss"]
    return {**score, "interval": {"low": perplexity_of(loss - half), "high": perplexity_of(loss + half)}}
