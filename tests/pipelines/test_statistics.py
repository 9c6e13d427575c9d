"""Intervals over seeds and prompts, against numbers worked by hand and known distributions."""

import math

import numpy as np
import pytest

from pipelines.statistics import Bootstrap, Estimate, Interval, holm, paired


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


def test_differences_are_taken_pair_by_pair() -> None:
    ones, others = {0: 0.5, 1: 0.9, 2: 0.1}, {1: 0.7, 0: 0.3, 5: 0.0}
    assert paired(ones, others) == pytest.approx([0.2, 0.2])
    assert paired({0: 1.0}, {1: 1.0}) == []


@pytest.mark.parametrize("decimals", [0, 6], ids=["few distinct values", "many"])
def test_the_bootstrap_of_many_values_is_the_normal_interval(decimals: int) -> None:
    values = np.random.default_rng(0).normal(1, 1, 400).round(decimals)
    found = Bootstrap.of(values.tolist())
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.interval.low == pytest.approx(values.mean() - half, abs=half / 20)
    assert found.interval.high == pytest.approx(values.mean() + half, abs=half / 20)


def test_groups_weigh_alike_and_vary_independently() -> None:
    few, many = [0.0, 1.0] * 50, [1.0, 3.0] * 200
    found = Bootstrap.of(few, many)
    assert found.mean == pytest.approx((0.5 + 2.0) / 2)
    half = 1.96 * math.hypot(0.5 / 10, 1.0 / 20) / 2
    assert found.interval.high - found.interval.low == pytest.approx(2 * half, rel=0.05)
    twice = Bootstrap.of(few, few).interval
    assert twice.high - twice.low == pytest.approx(2 * 1.96 * 0.05 / math.sqrt(2), rel=0.05)


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(0, 1, 100).tolist()
    assert Bootstrap.of(values) == Bootstrap.of(values)


def test_the_interval_covers_the_true_mean_about_19_times_in_20() -> None:
    generator = np.random.default_rng(2)
    intervals = [Bootstrap.of(generator.exponential(1, 100).tolist()).interval for _ in range(100)]
    assert 87 <= sum(found.low <= 1 <= found.high for found in intervals) <= 99


def test_a_difference_is_as_probable_as_its_interval_says() -> None:
    generator = np.random.default_rng(3)
    for shift in (0.0, 0.1, 0.2, 0.3, 0.5):
        found = Bootstrap.of(generator.normal(shift, 1, 100).tolist())
        without_zero = found.interval.low > 0 or found.interval.high < 0
        assert without_zero == (found.probability < 0.05)


def test_what_is_rarer_than_resampling_can_tell_still_has_its_probability() -> None:
    generator = np.random.default_rng(4)
    values = generator.normal(0, 1, 400)
    far = [
        Bootstrap.of((values - values.mean() + 0.05 * errors).tolist()).probability for errors in (5, 6, 7)
    ]
    normal = [math.erfc(errors / values.std() / math.sqrt(2)) for errors in (5, 6, 7)]
    assert np.log(far) == pytest.approx(np.log(normal), rel=0.1)


def test_five_values_of_one_sign_prove_nothing() -> None:
    assert Bootstrap.of([1.0] * 5) == Bootstrap(1.0, Interval(1.0, 1.0), 0.5**4)
    assert Bootstrap.of([1.0] * 6 + [0.0]).probability >= 0.5**5
    assert Bootstrap.of([0.0] * 50).probability == 1


def test_a_mean_of_nothing_or_of_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a value"):
        Bootstrap.of([1.0], [])
    with pytest.raises(ValueError, match="not a number"):
        Bootstrap.of([1.0, math.nan])


def test_holm_multiplies_the_least_probability_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
