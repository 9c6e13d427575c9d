"""Lines on charts are where the numbers are."""

import math
import re
from itertools import pairwise

import pytest

from pipelines.report.charts import Series, by_length, over_steps


def lines(svg: str) -> list[list[tuple[float, float]]]:
    """The points of every drawn line of a series, in the SVG's own units."""
    found = []
    for path in re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series', svg):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
        found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def test_lengths_that_double_are_evenly_spaced() -> None:
    (points,) = lines(by_length([Series("a", [256, 512, 1024, 2048], [0.1, 0.4, 0.2, 0.9])], label="x"))
    steps = [after[0] - before[0] for before, after in pairwise(points)]
    assert steps == pytest.approx([steps[0]] * 3, rel=1e-3)


def test_a_fraction_is_drawn_between_nothing_and_everything() -> None:
    svg = by_length([Series("a", [256, 512, 1024], [0.0, 0.5, 1.0])], label="x", fraction=True)
    (points,) = lines(svg)
    bottom, middle, top = (y for _, y in points)
    assert middle == pytest.approx((bottom + top) / 2, rel=1e-3)
    assert "100%" in svg


def test_a_noisy_line_gets_its_moving_average_and_a_smooth_one_does_not() -> None:
    steps = list(range(200))
    noisy = [step / 100 + (-1) ** step for step in steps]
    smooth = [step / 100 for step in steps]
    assert len(lines(over_steps([Series("a", steps, noisy)], label="x"))) == 2
    assert len(lines(over_steps([Series("a", steps, smooth)], label="x"))) == 1


def test_many_steps_are_thinned_to_a_few_hundred_points() -> None:
    steps = list(range(100_000))
    bent = [step**2 / 1e9 for step in steps]
    (points,) = lines(over_steps([Series("a", steps, bent)], label="x"))
    assert 30 < len(points) <= 401


def test_a_single_step_is_a_point() -> None:
    assert "<use" in over_steps([Series("a", [1], [2.0])], label="x")


def test_a_value_that_is_no_number_leaves_a_gap() -> None:
    svg = by_length([Series("a", [256, 512, 1024], [1.0, math.nan, 2.0])], label="x")
    assert "nan" not in svg.lower()


def test_the_label_is_told_to_a_screen_reader() -> None:
    assert 'aria-label="a &lt;b&gt; &quot;c&quot;"' in by_length([Series("a", [1], [1.0])], label='a <b> "c"')
