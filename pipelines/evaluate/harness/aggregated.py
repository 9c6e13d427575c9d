"""How sure a metric is that is no mean over documents, as perplexity by words is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipelines.statistics import Interval

_DRAWS = 200
"""Few, since a metric such as BLEU takes long."""

_SEED = 17


def aggregated_interval(
    aggregate: Callable[[Sequence[Any]], float], values: Sequence[Any], value: float
) -> Interval:
    """Returns the 95% interval of `value`, which is `aggregate(values)`, by the bootstrap over documents.

    lm-eval's own bootstrap knows some metrics only, starts processes and writes to the terminal.
    """
    random = np.random.default_rng(_SEED)
    drawn = []
    for _ in range(_DRAWS):
        rows = random.integers(len(values), size=len(values)).tolist()
        drawn.append(aggregate([values[row] for row in rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(min(float(low), value), max(float(high), value))
