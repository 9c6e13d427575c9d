"""Full attention sees a document's past and nothing else."""

import pytest
import torch

from se_model.baselines import FullConfig, full_attention


@pytest.mark.parametrize(("groups", "values"), [(1, 8), (2, 8), (4, 8), (2, 5), (4, 13)])
@pytest.mark.parametrize("bounds", [(0, 1), (0, 33), (0, 5, 6, 40)], ids=str)
def test_each_token_sees_its_document_s_past(draw, assert_attends, document_of, bounds, groups, values):
    inputs = draw(bounds[-1], groups=groups, values=values)
    output = full_attention(*inputs, cu_seqlens=torch.tensor(bounds))
    assert_attends(output, inputs, lambda head, t, s: document_of(bounds, t) <= s <= t)


def test_a_batch_and_an_own_scale(draw, assert_attends):
    inputs = draw(20, batch=3)
    assert_attends(full_attention(*inputs, scale=0.9), inputs, lambda head, t, s: s <= t, scale=0.9)


def test_bind_gives_full_attention():
    assert FullConfig().bind(layer=3, step=5) is full_attention
