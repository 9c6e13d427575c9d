"""Numbers as the report writes them."""

import math

import pytest

from pipelines.report.text import change, compact, duration, percent, points, scientific, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00012, "1.2e-4"),
        (0.002, "0.002"),
        (3.14159, "3.14"),
        (-12345, "-12,345"),
        (3_200_000, "3.2M"),
        (2_697_590_880, "2.7B"),
        (math.nan, "–"),
    ],
)
def test_compact(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(("value", "text"), [(52_592, "52.6K"), (9_999, "9,999"), (2_457_600, "2.46M")])
def test_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (9.5e-7, "9.5e-7"), (0.002, "2e-3")])
def test_scientific(value: float, text: str) -> None:
    assert scientific(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.434, "+43 points"), (-0.01, "−1 point"), (0.001, "±0 points"), (-0.2, "−20 points")],
)
def test_points(value: float, text: str) -> None:
    assert points(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.256, "26%"), (1, "100%")])
def test_percent(value: float | None, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(("value", "text"), [(-0.036, "−3.6%"), (0.1, "+10.0%")])
def test_change(value: float, text: str) -> None:
    assert change(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.25, "8.2 s"), (59.99, "60.0 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
