"""The interval of a metric over all documents is that of what would be found in others like them."""

import math
import statistics

import numpy as np
import pytest

from pipelines.evaluate.harness.aggregated import aggregated_interval
from pipelines.statistics import NORMAL_95


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400).tolist()
    found = aggregated_interval(statistics.fmean, values, statistics.fmean(values))
    half = NORMAL_95 * 2 / math.sqrt(400)
    # 200 draws tell a quantile to about a tenth of the half width.
    assert found.low == pytest.approx(statistics.fmean(values) - half, abs=half / 4)
    assert found.high == pytest.approx(statistics.fmean(values) + half, abs=half / 4)


def test_documents_are_drawn_whole_and_the_same_ones_each_time() -> None:
    def ratio(pairs: list[tuple[float, float]]) -> float:
        return sum(top for top, _ in pairs) / sum(bottom for _, bottom in pairs)

    pairs = [(3.0 * weight, weight) for weight in (1.0, 10.0, 100.0)]
    steady = aggregated_interval(ratio, pairs, 3.0)
    assert (steady.low, steady.high) == (3.0, 3.0)
    moving = [*pairs, (0.0, 50.0)]
    first = aggregated_interval(ratio, moving, ratio(moving))
    assert first == aggregated_interval(ratio, moving, ratio(moving))
    assert first.low < first.high
