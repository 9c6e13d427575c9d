"""Inputs, and attention under a mask spelt out token by token: the oracle of every baseline."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.tolerances import F64, within

Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def draw() -> Callable[..., Inputs]:
    def make(
        length: int, *, batch: int = 1, heads: int = 4, groups: int = 2, values: int = 8, seed: int = 0
    ) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (
            torch.randn(batch, length, count, width, generator=generator, dtype=torch.float64)
            .transpose(1, 2)
            .requires_grad_()
            for count, width in ((heads, 8), (groups, 8), (groups, values))
        )
        return q, k, v

    return make


@pytest.fixture
def assert_attends() -> Callable[..., None]:
    """Asserts that an output, and its gradients, are those of attention where ``sees(head, t, s)``."""

    def check(
        output: Tensor, inputs: Inputs, sees: Callable[[int, int, int], bool], scale: float = 8**-0.5
    ) -> None:
        q, k, v = inputs
        length = q.shape[2]
        visible = torch.tensor(
            [[[sees(head, t, s) for s in range(length)] for t in range(length)] for head in range(q.shape[1])]
        )
        sharing = q.shape[1] // k.shape[1]
        keys, values = (x.repeat_interleave(sharing, dim=1) for x in (k, v))
        logits = (q @ keys.transpose(-1, -2) * scale).masked_fill(~visible, -torch.inf)
        expected = logits.softmax(-1) @ values
        torch.testing.assert_close(output, expected, **within(F64))
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        actual_gradients = torch.autograd.grad(output, inputs, weights)
        for actual, wanted in zip(
            actual_gradients, torch.autograd.grad(expected, inputs, weights), strict=True
        ):
            torch.testing.assert_close(actual, wanted, **within(F64))

    return check


@pytest.fixture
def document_of() -> Callable[[tuple[int, ...], int], int]:
    """Where the document of a token begins."""
    return lambda bounds, token: max(bound for bound in bounds if bound <= token)
