"""The chunked state-space form is the recurrence."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from se_model.recurrence import ssd_chunked, ssd_naive
from tests.tolerances import BY_DTYPE, F32_SHORT, F64


def inputs(length: int, dtype: torch.dtype, *, decay: float, groups: int = 2, batch: int = 1) -> list[Tensor]:
    """x, dt, A, B, C, initial state; a token multiplies the state by about exp(-decay * 1..16)."""
    generator = torch.Generator().manual_seed(length)
    heads, width, state = 4, 6, 5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dt = torch.nn.functional.softplus(normal(batch, length, heads)) * decay
    A = -torch.linspace(1, 16, heads, dtype=torch.float64)
    B, C = normal(batch, length, groups, state), normal(batch, length, groups, state)
    tensors = [normal(batch, length, heads, width), dt, A, B, C, normal(batch, heads, width, state)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def outputs_and_gradients(form, tensors: list[Tensor], **options: object) -> dict[str, Tensor]:
    *arguments, state = tensors
    y, final = form(*arguments, initial_state=state, **options)
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum() for out in (y, final)
    )
    names = ["grad x", "grad dt", "grad A", "grad B", "grad C", "grad state"]
    return {"y": y, "state": final} | dict(zip(names, torch.autograd.grad(loss, tensors), strict=True))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1.0)
        torch.testing.assert_close(
            actual[name] / scale,
            value / scale,
            rtol=0,
            atol=BY_DTYPE[dtype],
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("decay", [1e-3, 0.1, 3.0], ids=["slow", "medium", "fast"])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 33, 100])
def test_chunked_equals_recurrence_outputs_and_every_gradient(length, decay, dtype):
    tensors = inputs(length, dtype, decay=decay)
    expected = outputs_and_gradients(ssd_naive, tensors)
    assert_same(outputs_and_gradients(ssd_chunked, tensors, chunk_size=16), expected, dtype)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_chunk_size_and_groups_do_not_change_the_result(chunk_size, groups):
    tensors = inputs(75, torch.float64, decay=0.3, groups=groups, batch=2)
    expected = outputs_and_gradients(ssd_naive, tensors)
    assert_same(outputs_and_gradients(ssd_chunked, tensors, chunk_size=chunk_size), expected, torch.float64)


BOUNDARIES = [[0, 1, 50], [0, 49, 50], [0, 16, 32, 50], [0, 3, 4, 5, 17, 40, 50], [0, 50], list(range(51))]


@pytest.mark.parametrize("bounds", BOUNDARIES, ids=str)
def test_chunked_equals_recurrence_on_packed_documents(bounds):
    tensors = inputs(50, torch.float64, decay=0.3)
    cu_seqlens = torch.tensor(bounds)
    expected = outputs_and_gradients(ssd_naive, tensors, cu_seqlens=cu_seqlens)
    actual = outputs_and_gradients(ssd_chunked, tensors, chunk_size=16, cu_seqlens=cu_seqlens)
    assert_same(actual, expected, torch.float64)


@pytest.mark.parametrize("form", [ssd_naive, ssd_chunked])
@pytest.mark.parametrize("bounds", BOUNDARIES, ids=str)
def test_packed_documents_equal_documents_one_by_one(form, bounds):
    *tensors, state = (tensor.detach() for tensor in inputs(50, torch.float64, decay=0.3))
    x, dt, A, B, C = tensors
    packed, final = form(x, dt, A, B, C, initial_state=state, cu_seqlens=torch.tensor(bounds))
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = slice(start, end)
        first = state if index == 0 else None
        y, last = form(x[:, part], dt[:, part], A, B[:, part], C[:, part], initial_state=first)
        torch.testing.assert_close(packed[:, part], y, rtol=0, atol=F64)
    torch.testing.assert_close(final, last, rtol=0, atol=F64)


@pytest.mark.parametrize("form", [ssd_naive, ssd_chunked])
def test_a_sequence_may_be_cut_anywhere_and_continued_from_the_state(form):
    *tensors, state = (tensor.detach() for tensor in inputs(40, torch.float64, decay=0.1))
    x, dt, A, B, C = tensors
    whole, final = form(x, dt, A, B, C, initial_state=state)
    parts = []
    for start, end in [(0, 1), (1, 18), (18, 40)]:
        part = slice(start, end)
        y, state = form(x[:, part], dt[:, part], A, B[:, part], C[:, part], initial_state=state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=F64)
    torch.testing.assert_close(state, final, rtol=0, atol=F64)


def test_float32_keeps_slow_decay_exact_behind_fast_decay():
    """Cumulative sums in float32 would lose the decay of the last tokens beside the sum of the first ones."""
    x, dt, A, B, C, _ = (tensor.detach() for tensor in inputs(256, torch.float64, decay=1.0))
    dt[:, :200] = 40.0
    dt[:, 200:] = 0.01
    exact, _ = ssd_naive(x, dt, A, B, C)
    single, _ = ssd_chunked(*(tensor.float() for tensor in (x, dt, A, B, C)), chunk_size=256)
    scale = exact[:, 200:].abs().max()
    torch.testing.assert_close(
        single[:, 200:].double() / scale, exact[:, 200:] / scale, rtol=0, atol=F32_SHORT
    )


def test_gradcheck_of_the_chunked_form():
    tensors = inputs(9, torch.float64, decay=0.5)
    cu_seqlens = torch.tensor([0, 2, 6, 9])

    def form(x, dt, A, B, C, state):
        return ssd_chunked(x, dt, A, B, C, chunk_size=4, initial_state=state, cu_seqlens=cu_seqlens)

    assert torch.autograd.gradcheck(form, tensors)


@pytest.mark.parametrize("form", [ssd_naive, ssd_chunked])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": torch.ones(1, 8, 3)}, r"dt must be \[B, L, H\]"),
        ({"B": torch.ones(1, 8, 3, 5), "C": torch.ones(1, 8, 3, 5)}, "groups must divide the heads"),
        ({"C": torch.ones(1, 8, 2, 4)}, "equally shaped"),
        ({"initial_state": torch.ones(1, 4, 5, 6)}, r"initial state must be \[B, H, P, N\] = \[1, 4, 6, 5\]"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "cu_seqlens must run from 0"),
        ({"cu_seqlens": torch.tensor([0, 5, 5, 8])}, "increase strictly"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(form, change, message):
    names = ["x", "dt", "A", "B", "C", "initial_state"]
    arguments = dict(zip(names, inputs(8, torch.float64, decay=1.0), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        form(**arguments)
