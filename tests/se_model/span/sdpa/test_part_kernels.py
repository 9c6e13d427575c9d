"""Attention in parts: torch's kernels and the definition agree, and merged parts are the whole."""

import pytest
import torch

from se_model.span.sdpa.part_kernels import (
    attend_part,
    attend_part_by_definition,
    part_gradients,
    part_gradients_by_definition,
)
from tests.tolerances import BF16, F64, within

DEVICES = [
    ("cpu", torch.float64, F64),
    pytest.param(
        ("cuda", torch.bfloat16, BF16),
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
        ],
    ),
]


def draw(device, dtype, queries, keys, groups, values=16):
    generator = torch.Generator().manual_seed(queries)
    shapes = [(2, 4, queries, 16), (2, groups, keys, 16), (2, groups, keys, values), (2, 4, queries, values)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize("where", DEVICES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("values", [16, 5, 24])
@pytest.mark.parametrize(("queries", "keys", "causal"), [(1, 1, True), (33, 33, True), (5, 70, False)])
def test_kernel_and_definition_agree(where, queries, keys, causal, values, groups):
    device, dtype, tolerance = where
    q, k, v, grad = draw(device, dtype, queries, keys, groups, values)
    how = {"causal": causal, "scale": 0.3}
    results = attend_part(q, k, v, **how)
    for one, other in zip(results, attend_part_by_definition(q, k, v, **how), strict=True):
        torch.testing.assert_close(one.double(), other.double(), **within(tolerance))
    found = part_gradients(grad, q, k, v, *results, **how)
    assert [x.shape for x in found] == [x.shape for x in (q, k, v)]
    for one, other in zip(found, part_gradients_by_definition(grad, q, k, v, *results, **how), strict=True):
        torch.testing.assert_close(one.double(), other.double(), **within(tolerance))


def test_gradients_of_parts_add_up_to_those_of_the_whole():
    q, k, v, grad = (x.requires_grad_() for x in draw("cpu", torch.float64, 20, 50, 2))
    keys, values = (x.repeat_interleave(2, dim=1) for x in (k, v))
    whole = (q @ keys.transpose(-1, -2) * 0.3).softmax(-1) @ values
    expected = torch.autograd.grad(whole, (q, k, v), grad)
    with torch.no_grad():
        cuts = [(x[:, :, :13], x[:, :, 13:]) for x in (k, v)]
        parts = [
            attend_part_by_definition(q, *pair, causal=False, scale=0.3) for pair in zip(*cuts, strict=True)
        ]
        (x, a), (y, b) = parts
        out, normaliser = x + (y - x) * (b - a).sigmoid()[..., None], torch.logaddexp(a, b)
        torch.testing.assert_close(out, whole, **within(F64))
        one, other = (
            part_gradients_by_definition(grad, q, *pair, out, normaliser, causal=False, scale=0.3)
            for pair in zip(*cuts, strict=True)
        )
    found = (one[0] + other[0], *(torch.cat(pair, dim=2) for pair in zip(one[1:], other[1:], strict=True)))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **within(F64))
