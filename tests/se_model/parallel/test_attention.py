"""Queries behind a prefix of keys see all of it, and what they give back reaches it."""

from __future__ import annotations

import pytest
import torch

from se_model.baselines import full_attention
from se_model.parallel.full import attend_behind
from tests.tolerances import BY_DTYPE, within


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("before", "values"), [(0, 4), (1, 4), (9, 4), (22, 4), (0, 3), (9, 3), (9, 7)])
def test_the_last_queries_of_full_attention(before: int, values: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (
        torch.randn(2, heads, 23, width, dtype=torch.float64, generator=generator).to(dtype)
        for heads, width in ((4, 4), (2, 4), (2, values), (4, values))
    )
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = full_attention(*wide, scale=0.3)[:, :, before:]
    wanted = torch.autograd.grad((expected * upstream[:, :, before:]).sum(), wide)

    (first_k, k), (first_v, v) = (x.split([before, 23 - before], dim=2) for x in inputs[1:])
    output = attend_behind(inputs[0][:, :, before:], k, v, first_k, first_v, 0.3)
    assert output.dtype == dtype
    gradients = torch.autograd.grad((output * upstream[:, :, before:]).sum(), inputs)
    torch.testing.assert_close(output.double(), expected, **within(BY_DTYPE[dtype]))
    for gradient, true in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), true, **within(BY_DTYPE[dtype]))
