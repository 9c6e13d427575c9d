"""Intervals over seeds, against numbers worked by hand."""

import math

import pytest

from tuning.compare.intervals import Estimate, paired_difference


def test_the_interval_is_student_s() -> None:
    # Three values with a sample deviation of 1: 4.303 / sqrt(3).
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))
    many = Estimate.of([0.0, 1.0] * 50)
    assert many.half_width == pytest.approx(1.96 * math.sqrt(0.25 * 100 / 99) / 10)


def test_a_single_value_has_no_interval() -> None:
    assert Estimate.of([0.25]) == Estimate(0.25, None)
    assert Estimate.of([0.25]).text() == "0.250"
    assert Estimate.of([0.2, 0.4]).text(2, sign=True) == "+0.30 ± 1.27"


def test_differences_are_taken_seed_by_seed() -> None:
    ones, others = {0: 0.5, 1: 0.9, 2: 0.1}, {1: 0.7, 0: 0.3, 5: 0.0}
    found = paired_difference(ones, others)
    assert found is not None
    assert found.mean == pytest.approx(0.2)
    assert found.half_width == pytest.approx(0.0, abs=1e-12)  # the same at both seeds, however these differ
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
