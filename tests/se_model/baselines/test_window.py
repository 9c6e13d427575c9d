"""Sliding-window attention sees exactly the window, across tiles, tails and documents."""

import pytest
import torch

from se_model.baselines import SlidingWindowConfig, sliding_window_attention

CASES = [
    (1, (0, 1)),
    (1, (0, 9)),
    (5, (0, 4)),
    (5, (0, 5)),
    (5, (0, 6)),
    (5, (0, 33)),
    (8, (0, 40)),
    (7, (0, 3, 30, 31, 60)),
]


@pytest.mark.parametrize(("window", "bounds"), CASES, ids=str)
@pytest.mark.parametrize(("groups", "values"), [(1, 8), (4, 8), (4, 5), (1, 13)])
def test_each_token_sees_the_window(draw, assert_attends, document_of, window, bounds, groups, values):
    inputs = draw(bounds[-1], groups=groups, values=values)
    output = sliding_window_attention(*inputs, window=window, cu_seqlens=torch.tensor(bounds))
    assert_attends(output, inputs, lambda head, t, s: max(document_of(bounds, t), t - window + 1) <= s <= t)


def test_tiles_smaller_than_the_window(draw, assert_attends):
    inputs = draw(450, heads=1, groups=1)
    output = sliding_window_attention(*inputs, window=150)
    assert_attends(output, inputs, lambda head, t, s: t - 150 < s <= t)


def test_a_batch_and_an_own_scale(draw, assert_attends):
    inputs = draw(20, batch=3)
    output = SlidingWindowConfig(window=6).bind(layer=0, step=0)(*inputs, scale=0.9)
    assert_attends(output, inputs, lambda head, t, s: t - 6 < s <= t, scale=0.9)


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="window must be at least 1, not 0"):
        SlidingWindowConfig(window=0)
