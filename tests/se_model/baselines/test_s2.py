"""S2 attention: groups, half of the heads shifted by half a group, and no head sees the future."""

import pytest
import torch

from se_model.baselines import S2Config, s2_attention
from se_model.baselines.s2 import group_bounds


def sees_in_groups(bounds, group_size, heads, document_of):
    """Whether query head h at t sees s: same group, not later. Written apart from ``group_bounds``."""

    def sees(head, t, s):
        start = document_of(bounds, t)
        end = min(bound for bound in bounds if bound > t)
        size = group_size or -(-(end - start) // 4)
        shift = size // 2 if head >= (heads + 1) // 2 else 0
        group = (t - start - shift) // size
        return start <= s <= t and (s - start - shift) // size == group

    return sees


@pytest.mark.parametrize("bounds", [(0, 1), (0, 2), (0, 5), (0, 32), (0, 37), (0, 3, 30, 31, 60)], ids=str)
@pytest.mark.parametrize("group_size", [None, 1, 6, 100])
@pytest.mark.parametrize(
    ("heads", "groups", "values"),
    [(4, 4, 8), (4, 2, 5), (4, 2, 8), (4, 1, 13), (4, 1, 8), (6, 3, 8), (3, 3, 5), (3, 3, 8), (3, 1, 8)],
)
def test_heads_attend_inside_their_groups(
    draw, assert_attends, document_of, bounds, group_size, heads, groups, values
):
    inputs = draw(bounds[-1], heads=heads, groups=groups, values=values)
    output = s2_attention(*inputs, group_size=group_size, cu_seqlens=torch.tensor(bounds))
    assert_attends(output, inputs, sees_in_groups(bounds, group_size, heads, document_of))


def test_the_first_tokens_do_not_see_the_last_ones(draw):
    q, k, v = draw(32)
    first = s2_attention(q, k, v)[:, :, :4]
    _, for_keys, for_values = torch.autograd.grad(first.square().sum(), (q, k, v))
    assert torch.count_nonzero(for_keys[:, :, 4:]) == torch.count_nonzero(for_values[:, :, 4:]) == 0


def test_groups_are_a_quarter_and_shift_by_half_a_group():
    assert group_bounds((0, 32), None, shifted=False) == (0, 8, 16, 24, 32)
    assert group_bounds((0, 32), None, shifted=True) == (0, 4, 12, 20, 28, 32)


def test_a_batch_and_an_own_scale(draw, assert_attends, document_of):
    inputs = draw(20, batch=2)
    output = S2Config(group_size=6).bind(layer=0, step=0)(*inputs, scale=0.9)
    assert_attends(output, inputs, sees_in_groups((0, 20), 6, 4, document_of), scale=0.9)


def test_what_cannot_be_shifted_is_refused(draw):
    with pytest.raises(ValueError, match="at least 2 query heads"):
        s2_attention(*draw(8, heads=1, groups=1))
    with pytest.raises(ValueError, match="group_size must be at least 1"):
        S2Config(group_size=0)
