"""Queries behind a prefix of keys see all of it, however they are tiled."""

from __future__ import annotations

import pytest
import torch

from se_model.baselines import full_attention
from se_model.parallel.attention import attend_behind
from tests.tolerances import F64, within


@pytest.mark.parametrize("mask_elements", [1, 60, 10**6])
def test_the_last_queries_of_full_attention_in_tiles(mask_elements: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (
        torch.randn(2, heads, 23, 4, dtype=torch.float64, generator=generator, requires_grad=True)
        for heads in (4, 2, 2, 4)
    )
    expected = full_attention(q, k, v, scale=0.3)[:, :, 9:]
    wanted = torch.autograd.grad((expected * upstream[:, :, 9:]).sum(), [q, k, v])
    output = attend_behind(q[:, :, 9:], k, v, 0.3, mask_elements=mask_elements)
    torch.testing.assert_close(output, expected, **within(F64))
    torch.testing.assert_close(
        torch.autograd.grad((output * upstream[:, :, 9:]).sum(), [q, k, v]), wanted, **within(F64)
    )
    with torch.no_grad():
        torch.testing.assert_close(
            attend_behind(q[:, :, 9:], k, v, 0.3, mask_elements=mask_elements), expected, **within(F64)
        )
