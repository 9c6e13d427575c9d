"""The learning rate by step."""

import pytest
from pydantic import ValidationError

from pipelines.recipe.keys.schedule import Schedule


def test_warm_up_is_linear_and_reaches_the_full_rate_at_its_last_step() -> None:
    schedule = Schedule(kind="constant", warmup_steps=4)
    assert [schedule.factor(step, 6) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_descends_from_the_full_rate_to_exactly_the_final_ratio() -> None:
    schedule = Schedule(kind="cosine", warmup_steps=2, final_ratio=0.1)
    factors = [schedule.factor(step, 12) for step in range(2, 13)]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    assert factors[5] == pytest.approx(0.55, abs=1e-12)  # half-way down
    assert factors[-1] == pytest.approx(0.1, abs=1e-12)


def test_one_step_alone_ends_at_the_final_ratio() -> None:
    assert Schedule(final_ratio=0.3).factor(1, 1) == pytest.approx(0.3, abs=1e-12)


@pytest.mark.parametrize("step", [0, 7])
def test_steps_outside_the_training_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match=r"1 \.\.\. 6"):
        Schedule().factor(step, 6)


def test_a_final_ratio_above_one_is_refused() -> None:
    with pytest.raises(ValidationError):
        Schedule(final_ratio=1.5)
