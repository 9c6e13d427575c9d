"""A recurrence by segments is the recurrence in one piece, and keeps no more than inputs and states."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import peak_bytes, saved_bytes
from se_model.recurrence.segments import DifferentiatedStep, Gradients, Part, by_segments
from tests.tolerances import F64_SHORT, within

LENGTH, WIDTH = 23, 3


def fading_sum(part: Part) -> tuple[Tensor, Tensor]:
    """h_t = rate h_(t-1) + gate_t x_t; y_t = h_t^2."""
    x, gate = part.inputs
    (rate,) = part.parameters
    state = part.state
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
    whole = fading_sum(Part(slice(0, LENGTH), [x, gate], [rate], state))
    cut = by_segments(DifferentiatedStep(fading_sum), [x, gate], [rate], state, size=size)
    weights = [torch.randn_like(each) for each in whole]

    def gradients(results: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            sum((each * weight).sum() for each, weight in zip(results, weights, strict=True)), given
        )

    torch.testing.assert_close(cut, whole, **within(F64_SHORT))
    torch.testing.assert_close(gradients(cut), gradients(whole), **within(F64_SHORT))


def test_what_needs_no_gradient_gets_none() -> None:
    x, gate, rate, state = tensors()
    y, _ = by_segments(
        DifferentiatedStep(fading_sum), [x, gate.detach()], [rate.detach()], state.detach(), size=4
    )
    (found,) = torch.autograd.grad(y.sum(), [x])
    y, _ = by_segments(DifferentiatedStep(fading_sum), [x, gate], [rate], state, size=4)
    torch.testing.assert_close(found, torch.autograd.grad(y.sum(), [x])[0], **within(0))


def test_a_state_of_each_segment_is_all_that_is_kept_beside_the_inputs() -> None:
    x, gate, rate, state = given = tensors()
    kept = saved_bytes(
        lambda: by_segments(DifferentiatedStep(fading_sum), [x, gate], [rate], state, size=5), given
    )
    assert kept == 4 * 8 * state.numel()  # of five segments the first begins with the state that is given


def test_activation_checkpointing_repeats_it() -> None:
    x, gate, rate, state = given = tensors()

    def gradients(results: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(results[0].sum() + results[1].sum(), given)

    def cut(x: Tensor, gate: Tensor, rate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return by_segments(DifferentiatedStep(fading_sum), [x, gate], [rate], state, size=5)

    repeated = checkpoint(cut, x, gate, rate, state, use_reentrant=False)
    torch.testing.assert_close(gradients(repeated), gradients(cut(*given)), **within(0))


class ScaledSum:
    """h_t = h_(t-1) + rate x_t; y = h, with the gradients written out: that of rate in float64."""

    def forward(self, part: Part) -> tuple[Tensor, Tensor]:
        y = part.state[:, None] + part.parameters[0] * part.inputs[0].cumsum(1)
        return y, y[:, -1]

    def backward(self, part: Part, d_output: Tensor, d_state: Tensor, needed: Sequence[bool]) -> Gradients:
        behind = d_output.flip(1).cumsum(1).flip(1) + d_state[:, None]
        of_rate = (behind.double() * part.inputs[0].double()).sum((0, 1))
        of_x = behind * part.parameters[0] if needed[0] else None
        return Gradients((of_x, of_rate), behind[:, 0])


@pytest.mark.parametrize("size", [1, 5, 23])
def test_a_step_with_its_own_gradients(size: int) -> None:
    x, _, rate, state = tensors()
    step = ScaledSum()
    found, expected = (
        torch.autograd.grad(results[0].sin().sum() + results[1].sin().sum(), [x, rate, state])
        for results in (
            by_segments(step, [x], [rate], state, size=size),
            step.forward(Part(slice(0, LENGTH), [x], [rate], state)),
        )
    )
    torch.testing.assert_close(found, expected, **within(F64_SHORT))


def test_gradients_of_parameters_are_summed_in_the_dtype_in_which_they_come() -> None:
    x = torch.full((1, 3, 1), 2.0**-30)
    x[:, 0] = 1
    x[:, 1] = -1
    rate = torch.ones(1, requires_grad=True)
    y, _ = by_segments(ScaledSum(), [x], [rate], torch.zeros(1, 1), size=1)
    y.backward(torch.tensor([[[0.0], [0.0], [1.0]]]))
    assert rate.grad == 2.0**-30  # behind a one that float32 would have lost it to


def test_outputs_are_written_where_they_stay() -> None:
    x = torch.ones(1, 2**16, 4)
    rate, state = torch.ones(4), torch.zeros(1, 4)
    held = peak_bytes(lambda: by_segments(ScaledSum(), [x], [rate], state, size=2**12), "cpu")
    assert x.nbytes <= held < 1.5 * x.nbytes
