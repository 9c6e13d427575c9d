"""A recurrence by segments is the recurrence in one piece, and keeps no more than inputs and states."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import saved_bytes
from se_model.recurrence.segments import by_segments
from tests.tolerances import F64_SHORT, within

LENGTH, WIDTH = 23, 3


def fading_sum(
    tokens: slice, inputs: Sequence[Tensor], parameters: Sequence[Tensor], state: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = rate h_(t-1) + gate_t x_t; y_t = h_t^2."""
    x, gate = inputs
    (rate,) = parameters
    outputs = []
    for t in range(x.shape[1]):
        state = rate * state + gate[:, t] * x[:, t]
        outputs.append(state.square())
    return torch.stack(outputs, dim=1), state


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, LENGTH, WIDTH), (2, LENGTH, 1), (WIDTH,), (2, WIDTH)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [each.requires_grad_() for each in made]


@pytest.mark.parametrize("size", [1, 5, 22, 23, 64])
def test_outputs_state_and_every_gradient(size: int) -> None:
    x, gate, rate, state = given = tensors()
    whole = fading_sum(slice(0, LENGTH), [x, gate], [rate], state)
    cut = by_segments(fading_sum, [x, gate], [rate], state, size=size)
    weights = [torch.randn_like(each) for each in whole]

    def gradients(results: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            sum((each * weight).sum() for each, weight in zip(results, weights, strict=True)), given
        )

    torch.testing.assert_close(cut, whole, **within(F64_SHORT))
    torch.testing.assert_close(gradients(cut), gradients(whole), **within(F64_SHORT))


def test_what_needs_no_gradient_gets_none() -> None:
    x, gate, rate, state = tensors()
    y, _ = by_segments(fading_sum, [x, gate.detach()], [rate.detach()], state.detach(), size=4)
    (found,) = torch.autograd.grad(y.sum(), [x])
    y, _ = by_segments(fading_sum, [x, gate], [rate], state, size=4)
    torch.testing.assert_close(found, torch.autograd.grad(y.sum(), [x])[0], **within(0))


def test_a_state_of_each_segment_is_all_that_is_kept_beside_the_inputs() -> None:
    x, gate, rate, state = given = tensors()
    kept = saved_bytes(lambda: by_segments(fading_sum, [x, gate], [rate], state, size=5), given)
    assert kept == 4 * 8 * state.numel()  # of five segments the first begins with the state that is given


def test_activation_checkpointing_repeats_it() -> None:
    x, gate, rate, state = given = tensors()

    def gradients(results: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(results[0].sum() + results[1].sum(), given)

    def cut(x: Tensor, gate: Tensor, rate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return by_segments(fading_sum, [x, gate], [rate], state, size=5)

    repeated = checkpoint(cut, x, gate, rate, state, use_reentrant=False)
    torch.testing.assert_close(gradients(repeated), gradients(cut(*given)), **within(0))
