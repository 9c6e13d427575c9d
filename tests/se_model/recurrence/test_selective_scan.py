"""The chunked selective scan is the recurrence, and transformers'."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.jamba.modeling_jamba import mamba_selective_scan

from se_model.recurrence import selective_scan_chunked, selective_scan_naive
from tests.tolerances import BY_DTYPE, EXACT, F32_SHORT, F64, within

# The package has a function `selective_scan`.
chunked = sys.modules["se_model.recurrence.selective_scan.chunked"]

NAMES = ["u", "dt", "A", "B", "C", "initial_state"]
CHANNELS, STATE = 8, 5


def inputs(length: int, dtype: torch.dtype, *, decay: float, groups: int = 2, batch: int = 1) -> list[Tensor]:
    """u, dt, A, B, C, initial state; a token multiplies the state by about exp(-decay * 1..16)."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # Steps of order one, so that the state is, too, however it decays.
    dt = F.softplus(normal(batch, length, CHANNELS))
    A = -decay * torch.linspace(1, 16, CHANNELS * STATE, dtype=torch.float64).view(CHANNELS, STATE)
    B, C = normal(batch, length, groups, STATE), normal(batch, length, groups, STATE)
    tensors = [normal(batch, length, CHANNELS), dt, A, B, C, normal(batch, CHANNELS, STATE)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def outputs_and_gradients(form, tensors: list[Tensor], **options: object) -> dict[str, Tensor]:
    *arguments, state = tensors
    y, final = form(*arguments, initial_state=state, **options)
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum() for out in (y, final)
    )
    gradients = torch.autograd.grad(loss, tensors)
    return {"y": y, "state": final} | {
        f"grad {name}": each for name, each in zip(NAMES, gradients, strict=True)
    }


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


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 tokens in a segment, so that short rows have several."""
    monkeypatch.setattr(chunked, "SEGMENT", 32)


LENGTHS = [1, 2, 15, 17, 64, 130]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("decay", [1e-4, 0.1, 100.0], ids=["slow", "medium", "total"])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_equals_recurrence_outputs_and_every_gradient(length, decay, dtype):
    tensors = inputs(length, dtype, decay=decay)
    expected = outputs_and_gradients(selective_scan_naive, tensors)
    assert_same(outputs_and_gradients(selective_scan_chunked, tensors), expected, dtype)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_groups_and_rows_of_a_batch(groups):
    tensors = inputs(75, torch.float64, decay=0.05, groups=groups, batch=2)
    expected = outputs_and_gradients(selective_scan_naive, tensors)
    assert_same(outputs_and_gradients(selective_scan_chunked, tensors), expected, torch.float64)


def test_decays_of_one_and_of_zero():
    tensors = inputs(50, torch.float64, decay=1.0)
    with torch.no_grad():
        tensors[1][:, 10:13] = 0.0
        tensors[1][:, 20:23] = 1e4
    expected = outputs_and_gradients(selective_scan_naive, tensors)
    actual = outputs_and_gradients(selective_scan_chunked, tensors)
    for name, value in actual.items():
        assert value.isfinite().all(), name
    assert_same(actual, expected, torch.float64)


SEVERAL = [
    None,
    [0, 1, 130],
    [0, 129, 130],
    [0, 6, 12, 130],
    [0, 32, 64, 130],
    [0, 5, 97, 130],
    [0, 1, 2, 3, 31, 32, 34, 95, 130],
    list(range(131)),
]


@pytest.mark.parametrize("bounds", SEVERAL, ids=str)
@pytest.mark.parametrize("length", [32, 33, 64, 65, 130])
@pytest.mark.usefixtures("short_segments")
def test_several_segments_and_documents_equal_the_recurrence(length, bounds):
    tensors = inputs(length, torch.float64, decay=0.01)
    options = {}
    if bounds is not None:
        options = {"cu_seqlens": torch.tensor([*(bound for bound in bounds if bound < length), length])}
    expected = outputs_and_gradients(selective_scan_naive, tensors, **options)
    assert_same(outputs_and_gradients(selective_scan_chunked, tensors, **options), expected, torch.float64)


@pytest.mark.parametrize("form", [selective_scan_naive, selective_scan_chunked])
@pytest.mark.parametrize("bounds", SEVERAL[1:], ids=str)
@pytest.mark.usefixtures("short_segments")
def test_packed_documents_equal_documents_one_by_one(form, bounds):
    *tensors, state = (tensor.detach() for tensor in inputs(130, torch.float64, decay=0.01))
    u, dt, A, B, C = tensors
    packed, final = form(u, dt, A, B, C, initial_state=state, cu_seqlens=torch.tensor(bounds))
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = slice(start, end)
        first = state if index == 0 else None
        y, last = form(u[:, part], dt[:, part], A, B[:, part], C[:, part], initial_state=first)
        torch.testing.assert_close(packed[:, part], y, **within(F64))
    torch.testing.assert_close(final, last, **within(F64))


@pytest.mark.usefixtures("short_segments")
def test_what_one_document_holds_changes_no_bit_of_the_next():
    *tensors, _ = (tensor.detach() for tensor in inputs(50, torch.float64, decay=1e-3))
    bounds = torch.tensor([0, 17, 50])
    clean, _ = selective_scan_chunked(*tensors, cu_seqlens=bounds)
    tensors[0][:, :17] *= 1e300
    spoilt, _ = selective_scan_chunked(*tensors, cu_seqlens=bounds)
    torch.testing.assert_close(spoilt[:, 17:], clean[:, 17:], **EXACT)


@pytest.mark.parametrize("form", [selective_scan_naive, selective_scan_chunked])
def test_a_sequence_may_be_cut_anywhere_and_continued_from_the_state(form):
    *tensors, state = (tensor.detach() for tensor in inputs(40, torch.float64, decay=0.02))
    u, dt, A, B, C = tensors
    whole, final = form(u, dt, A, B, C, initial_state=state)
    parts = []
    for start, end in [(0, 1), (1, 18), (18, 40)]:
        part = slice(start, end)
        y, state = form(u[:, part], dt[:, part], A, B[:, part], C[:, part], initial_state=state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **within(F64))
    torch.testing.assert_close(state, final, **within(F64))


@pytest.mark.usefixtures("short_segments")
def test_rows_of_a_batch_start_from_zeros_where_no_state_is_given():
    *tensors, _ = inputs(75, torch.float64, decay=0.05, batch=3)
    expected, actual = (form(*tensors) for form in (selective_scan_naive, selective_scan_chunked))
    torch.testing.assert_close(actual, expected, **within(F64))


@pytest.mark.parametrize("bounds", SEVERAL, ids=str)
@pytest.mark.usefixtures("short_segments")
def test_a_state_received_after_the_scan_is_as_one_known_before(bounds):
    tensors = inputs(130, torch.float64, decay=2e-3)
    told = []

    def from_elsewhere(*arguments, initial_state, **options):
        def received(left, log_decay):
            told.append((left, log_decay))
            return initial_state

        return selective_scan_chunked(*arguments, initial_state=received, **options)

    options = {} if bounds is None else {"cu_seqlens": torch.tensor(bounds)}
    expected = outputs_and_gradients(selective_scan_naive, tensors, **options)
    assert_same(outputs_and_gradients(from_elsewhere, tensors, **options), expected, torch.float64)
    _, dt, A, *_ = tensors
    left, log_decay = told[0]
    torch.testing.assert_close(left, selective_scan_naive(*tensors[:-1], **options)[1], **within(F64))
    torch.testing.assert_close(log_decay, (dt[..., None] * A).sum(1), **within(F64))


@pytest.mark.usefixtures("short_segments")
def test_gradients_flow_through_what_the_received_state_is_made_of():
    *tensors, _ = inputs(9, torch.float64, decay=0.5)

    def form(u, dt, A, B, C):
        def received(left, log_decay):
            return left * log_decay.exp() + left

        return selective_scan_chunked(u, dt, A, B, C, initial_state=received)

    assert torch.autograd.gradcheck(form, tensors)


def test_gradcheck_of_the_chunked_form():
    tensors = inputs(9, torch.float64, decay=0.5)
    cu_seqlens = torch.tensor([0, 2, 6, 9])

    def form(u, dt, A, B, C, state):
        return selective_scan_chunked(u, dt, A, B, C, initial_state=state, cu_seqlens=cu_seqlens)

    assert torch.autograd.gradcheck(form, tensors)


@pytest.mark.parametrize("form", [selective_scan_naive, selective_scan_chunked])
def test_transformers_computes_the_same(form):
    *tensors, _ = inputs(40, torch.float64, decay=0.1, groups=1)
    u, dt, A, B, C = tensors
    y, state = form(u, dt, A, B, C)
    expected, last = mamba_selective_scan(
        u.mT, dt.mT, A, B[:, :, 0].mT, C[:, :, 0].mT, return_last_state=True
    )
    # Its products are float64, but of factors that it rounds to float32.
    torch.testing.assert_close(y, expected.mT, **within(F32_SHORT))
    torch.testing.assert_close(state, last, **within(F32_SHORT))


def test_half_precision_inputs_are_computed_in_float32():
    tensors = inputs(100, torch.float64, decay=0.1)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in halves]
    expected = outputs_and_gradients(selective_scan_naive, exact)
    actual = outputs_and_gradients(selective_scan_chunked, halves)
    assert actual["state"].dtype == torch.float32
    assert actual["grad A"].dtype == torch.bfloat16
    assert_same({name: value.double() for name, value in actual.items()}, expected, torch.bfloat16)


def test_float32_keeps_slow_decay_exact_behind_fast_decay():
    *tensors, _ = (tensor.detach() for tensor in inputs(256, torch.float64, decay=1.0))
    tensors[1][:, :200] = 40.0
    tensors[1][:, 200:] = 0.01
    exact, _ = selective_scan_naive(*tensors)
    single, _ = selective_scan_chunked(*(tensor.float() for tensor in tensors))
    scale = exact[:, 200:].abs().max()
    torch.testing.assert_close(
        single[:, 200:].double() / scale, exact[:, 200:] / scale, rtol=0, atol=F32_SHORT
    )


def test_second_derivatives_are_refused():
    *tensors, _ = inputs(9, torch.float64, decay=0.5)
    y, _ = selective_scan_chunked(*tensors)
    (first,) = torch.autograd.grad(y.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("form", [selective_scan_naive, selective_scan_chunked])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(8, CHANNELS)}, r"takes u \[B, L, D\], A \[D, N\] and B, C \[B, L, G, N\]"),
        ({"dt": torch.ones(1, 8, 3)}, r"dt must be \[B, L, D\]"),
        ({"B": torch.ones(1, 8, 3, STATE), "C": torch.ones(1, 8, 3, STATE)}, "must divide the channels"),
        ({"C": torch.ones(1, 8, 2, 4)}, "equally shaped"),
        ({"A": torch.ones(CHANNELS, 3)}, r"as wide as A.*A \[8, 3\]"),
        ({"initial_state": torch.ones(1, STATE, CHANNELS)}, r"must be \[B, D, N\] = \[1, 8, 5\]; got"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "cu_seqlens must run from 0"),
        ({"cu_seqlens": torch.tensor([0, 5, 5, 8])}, "increase strictly"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(form, change, message):
    arguments = dict(zip(NAMES, inputs(8, torch.float64, decay=1.0), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        form(**arguments)
