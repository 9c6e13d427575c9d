"""The chunked state-space form is the recurrence."""

from __future__ import annotations

import itertools
import sys
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import saved_bytes, saved_tensors, storage_identity
from se_model.recurrence import ssd_chunked, ssd_naive
from se_model.recurrence.mamba2.segment import Inputs, Segment
from tests.tolerances import BY_DTYPE, F32_SHORT, F64

chunked = sys.modules["se_model.recurrence.mamba2.chunked"]  # the package has a function `mamba2`


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


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks of 16 in a segment, so that short rows have several."""
    monkeypatch.setattr(chunked, "SEGMENT", 32)


SEVERAL = [None, [0, 33, 100], [0, 32, 64, 100], [0, 5, 97, 100], [0, 1, 2, 3, 31, 32, 34, 100]]


@pytest.mark.parametrize("bounds", SEVERAL, ids=str)
@pytest.mark.parametrize(("length", "groups"), [(31, 1), (32, 2), (33, 4), (64, 2), (65, 1), (100, 2)])
@pytest.mark.usefixtures("short_segments")
def test_several_segments_equal_the_recurrence(length, groups, bounds):
    tensors = inputs(length, torch.float64, decay=0.05, groups=groups)
    options = {}
    if bounds is not None:
        options = {"cu_seqlens": torch.tensor([*(bound for bound in bounds if bound < length), length])}
    expected = outputs_and_gradients(ssd_naive, tensors, **options)
    actual = outputs_and_gradients(ssd_chunked, tensors, chunk_size=16, **options)
    assert_same(actual, expected, torch.float64)


@pytest.mark.usefixtures("short_segments")
def test_rows_of_a_batch_start_from_zeros_where_no_state_is_given():
    *tensors, _ = inputs(75, torch.float64, decay=0.05, batch=3)
    expected, actual = (form(*tensors) for form in (ssd_naive, partial(ssd_chunked, chunk_size=16)))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=F64)


@pytest.mark.parametrize("bounds", SEVERAL, ids=str)
@pytest.mark.usefixtures("short_segments")
def test_a_state_received_after_the_scan_is_as_one_known_before(bounds):
    tensors = inputs(100, torch.float64, decay=0.02)
    told = []

    def from_elsewhere(*arguments, initial_state, **options):
        def received(left, log_decay):
            told.append((left, log_decay))
            return initial_state

        return ssd_chunked(*arguments, chunk_size=16, initial_state=received, **options)

    options = {} if bounds is None else {"cu_seqlens": torch.tensor(bounds)}
    expected = outputs_and_gradients(ssd_naive, tensors, **options)
    assert_same(outputs_and_gradients(from_elsewhere, tensors, **options), expected, torch.float64)
    x, dt, A, B, C, _ = tensors
    torch.testing.assert_close(told[0][0], ssd_naive(x, dt, A, B, C, **options)[1], rtol=0, atol=F64)
    torch.testing.assert_close(told[0][1], (dt * A).sum(1), rtol=0, atol=F64)


@pytest.mark.usefixtures("short_segments")
def test_gradients_flow_through_what_the_received_state_is_made_of():
    x, dt, A, B, C, _ = inputs(9, torch.float64, decay=0.5)

    def form(x, dt, A, B, C):
        def received(left, log_decay):
            return left * log_decay.exp()[..., None, None] + left

        return ssd_chunked(x, dt, A, B, C, chunk_size=4, initial_state=received)

    assert torch.autograd.gradcheck(form, (x, dt, A, B, C))


def test_half_precision_inputs_are_computed_in_float32():
    tensors = inputs(100, torch.float64, decay=0.1)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in halves]
    expected = outputs_and_gradients(ssd_naive, exact)
    actual = outputs_and_gradients(ssd_chunked, halves, chunk_size=16)
    assert actual["y"].dtype == actual["state"].dtype == torch.float32
    outputs = {name: actual[name].double() for name in ("y", "state")}
    assert_same(outputs, {name: expected[name] for name in outputs}, torch.float32)
    assert actual.pop("grad A").dtype == torch.bfloat16
    expected.pop("grad A")  # of hundreds of tokens: its rounding alone is beyond the others'
    assert_same({name: value.double() for name, value in actual.items()}, expected, torch.bfloat16)


def wide_inputs(length: int) -> list[Tensor]:
    """x, dt, A, B, C of heads of 64 with states of 128, as models have them."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, length, 8, 64), (1, length, 8), (1, length, 1, 128), (1, length, 1, 128)
    x, dt, B, C = (torch.randn(shape, generator=generator) for shape in shapes)
    tensors = x, torch.nn.functional.softplus(dt), -torch.linspace(1, 16, 8), B, C
    return [tensor.requires_grad_() for tensor in tensors]


def test_a_fifth_of_the_inputs_is_kept_for_backward_at_most():
    tensors = wide_inputs(2048)
    saved = saved_tensors(lambda: ssd_chunked(*tensors))
    assert {storage_identity(tensor) for tensor in tensors} <= saved.keys()
    beyond = saved_bytes(lambda: ssd_chunked(*tensors), tensors)
    assert 0 < beyond <= 0.2 * sum(tensor.nbytes for tensor in tensors)


def test_arithmetic_grows_with_the_length_alone():
    def operations(length: int) -> int:
        tensors = wide_inputs(length)
        with FlopCounterMode(display=False) as counter:
            y, state = ssd_chunked(*tensors)
            torch.autograd.grad((y.sum() + state.sum()), tensors)
        return counter.get_total_flops()

    assert operations(4096) == 4 * operations(1024)


def test_what_has_decayed_to_nothing_is_zero_and_not_denormal():
    x, dt, A, B, C = (tensor.detach() for tensor in wide_inputs(1024))
    made = Segment.of(Inputs(x, dt, A, B, C), dtype=torch.float32, size=64, documents=None)
    for decay in (made.within, made.from_start, made.to_end, made.across):
        assert decay.min() == 0
        assert decay[decay > 0].min() > 1e-20


def test_second_derivatives_are_refused():
    *tensors, _ = inputs(9, torch.float64, decay=0.5)
    (first,) = torch.autograd.grad(ssd_chunked(*tensors)[0].square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


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
