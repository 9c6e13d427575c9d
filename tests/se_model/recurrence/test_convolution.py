"""The causal convolution is torch's, and keeps states and documents apart."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from se_model.recurrence import CausalConv1d, causal_convolution
from tests.tolerances import EXACT, F64_SHORT


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 33])
def test_equals_torch_conv1d_outputs_and_every_gradient(length, width):
    x, weight, bias = random(2, length, 6), random(6, width, seed=1), random(6, seed=2)
    y = causal_convolution(x, weight, bias)
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    expected = F.conv1d(padded, weight[:, None], bias, groups=6).transpose(1, 2)
    torch.testing.assert_close(y, expected, rtol=0, atol=F64_SHORT)
    upstream = random(2, length, 6, seed=3).detach()
    actual = torch.autograd.grad(y, (x, weight, bias), upstream)
    for gradient, reference in zip(
        actual, torch.autograd.grad(expected, (x, weight, bias), upstream), strict=True
    ):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=F64_SHORT)


def test_a_sequence_may_be_cut_anywhere_and_continued_from_its_last_inputs():
    x, weight, bias = random(2, 20, 6), random(6, 4, seed=1), random(6, seed=2)
    whole = causal_convolution(x, weight, bias)
    for cut in range(1, 20):
        seen = F.pad(x[:, :cut], (0, 0, 3, 0))[:, -3:]
        rest = causal_convolution(x[:, cut:], weight, bias, state=seen)
        torch.testing.assert_close(rest, whole[:, cut:], rtol=0, atol=F64_SHORT)


@pytest.mark.parametrize("bounds", [[0, 20], [0, 1, 2, 3, 20], [0, 5, 11, 19, 20], list(range(21))], ids=str)
def test_packed_documents_equal_documents_one_by_one_and_the_state_enters_the_first(bounds):
    x, weight, bias, state = (
        random(1, 20, 6),
        random(6, 4, seed=1),
        random(6, seed=2),
        random(1, 3, 6, seed=3),
    )
    packed = causal_convolution(x, weight, bias, state=state, cu_seqlens=torch.tensor(bounds))
    documents = [
        causal_convolution(x[:, start:end], weight, bias, state=None if start else state)
        for start, end in itertools.pairwise(bounds)
    ]
    expected = torch.cat(documents, dim=1)
    torch.testing.assert_close(packed, expected, rtol=0, atol=F64_SHORT)
    upstream = random(1, 20, 6, seed=4).detach()
    leaves = (x, weight, bias, state)
    actual = torch.autograd.grad(packed, leaves, upstream)
    for gradient, reference in zip(actual, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=F64_SHORT)


def test_the_module_has_the_parameters_of_a_depthwise_conv1d():
    module = CausalConv1d(6, 4)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == {"weight": (6, 1, 4), "bias": (6,)}
    x = torch.randn(2, 9, 6)
    torch.testing.assert_close(module(x), causal_convolution(x, module.weight[:, 0], module.bias), **EXACT)


def test_a_state_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[B, W - 1, C\] = \[2, 3, 6\]; got \[2, 4, 6\]"):
        causal_convolution(random(2, 5, 6), random(6, 4), state=random(2, 4, 6))
