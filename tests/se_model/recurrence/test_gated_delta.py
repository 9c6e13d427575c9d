"""The chunked gated delta rule is the recurrence, with a decay for each head and for each channel."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from benchmarks.measure import saved_bytes, saved_tensors, storage_identity
from se_model.recurrence import delta_rule_chunked, delta_rule_naive
from se_model.recurrence.gated_delta import chunked
from tests.tolerances import BY_DTYPE, F32, F32_SHORT, F64

WIDTHS = ["head", "channel"]
FORMS = [delta_rule_naive, partial(delta_rule_chunked, chunk_size=16)]
NAMES = ["q", "k", "v", "log_decay", "beta", "initial_state"]
KEY, VALUE, HEADS = 5, 6, 4


def inputs(
    length: int,
    width: str,
    dtype: torch.dtype = torch.float64,
    *,
    decay: float = 0.1,
    groups: int = 2,
    batch: int = 1,
) -> list[Tensor]:
    """q, k, v, log_decay, beta, initial state; beta goes up to 2, where a state may change its sign.

    Tokens multiply the state by about exp(-decay), but every third does not decay it, or that channel.
    """
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = normal(batch, length, groups, KEY), normal(batch, length, groups, KEY)
    log = normal(batch, length, HEADS, *([KEY] if width == "channel" else []))
    log = -F.softplus(log) * decay * (torch.rand(log.shape, generator=generator) > 1 / 3)
    beta = 2 * torch.rand(batch, length, HEADS, generator=generator, dtype=torch.float64)
    tensors = [q, k, normal(batch, length, HEADS, VALUE), log, beta, normal(batch, HEADS, KEY, VALUE)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def outputs_and_gradients(form: Any, tensors: list[Tensor], **options: object) -> dict[str, Tensor]:
    *arguments, state = tensors
    o, final = form(*arguments, initial_state=state, **options)
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum() for out in (o, final)
    )
    gradients = torch.autograd.grad(loss, tensors)
    named = {f"gradient of {name}": found for name, found in zip(NAMES, gradients, strict=True)}
    return {"o": o, "state": final} | named


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1.0)
        message = partial("{}: {}".format, name)
        torch.testing.assert_close(actual[name] / scale, value / scale, rtol=0, atol=tolerance, msg=message)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("decay", [0.0, 1e-3, 0.3, 80.0], ids=["none", "slow", "medium", "to nothing"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 65, 130])
def test_chunked_equals_recurrence_outputs_and_every_gradient(length, width, decay, dtype):
    tensors = inputs(length, width, dtype, decay=decay)
    expected = outputs_and_gradients(delta_rule_naive, tensors)
    assert_same(outputs_and_gradients(delta_rule_chunked, tensors), expected, BY_DTYPE[dtype])


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("chunk_size", [1, 7, 16, 1000])
@pytest.mark.parametrize("width", WIDTHS)
def test_chunk_size_and_groups_do_not_change_the_result(width, chunk_size, groups):
    tensors = inputs(45, width, groups=groups, batch=2)
    expected = outputs_and_gradients(delta_rule_naive, tensors)
    actual = outputs_and_gradients(delta_rule_chunked, tensors, chunk_size=chunk_size)
    assert_same(actual, expected, F64)


def transformers_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    peer = torch_chunk_gated_delta_rule if g.dim() == 3 else chunk_kimi_delta_attention
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True, "initial_state": initial_state}
    return peer(q, k, v, g, beta, **options)


@pytest.mark.parametrize(("width", "groups"), [("head", 4), ("head", 2), ("channel", 4)])
@pytest.mark.parametrize("form", FORMS, ids=["naive", "chunked"])
def test_it_is_what_transformers_computes(form, width, groups):
    tensors = inputs(70, width, torch.float32, groups=groups)
    expected = outputs_and_gradients(transformers_rule, tensors)
    assert_same(outputs_and_gradients(form, tensors), expected, F32)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks of 16 in a segment, so that short rows have several."""
    monkeypatch.setattr(chunked, "SEGMENT", 32)


SEVERAL = [None, [0, 33, 100], [0, 32, 64, 100], [0, 5, 97, 100], [0, 1, 2, 3, 31, 32, 34, 100]]


@pytest.mark.parametrize("bounds", SEVERAL, ids=str)
@pytest.mark.parametrize(("length", "groups"), [(31, 1), (32, 2), (33, 4), (64, 2), (100, 2)])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.usefixtures("short_segments")
def test_several_segments_equal_the_recurrence(width, length, groups, bounds):
    tensors = inputs(length, width, decay=0.02, groups=groups)
    options = {}
    if bounds is not None:
        options = {"cu_seqlens": torch.tensor([*(bound for bound in bounds if bound < length), length])}
    expected = outputs_and_gradients(delta_rule_naive, tensors, **options)
    actual = outputs_and_gradients(delta_rule_chunked, tensors, chunk_size=16, **options)
    assert_same(actual, expected, F64)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.usefixtures("short_segments")
def test_rows_of_a_batch_start_from_zeros_where_no_state_is_given(width):
    *tensors, _ = inputs(75, width, batch=3)
    expected, actual = (form(*tensors) for form in FORMS)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=F64)


@pytest.mark.parametrize("bounds", SEVERAL, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.usefixtures("short_segments")
def test_a_state_received_after_the_scan_is_as_one_known_before(width, bounds):
    tensors = inputs(100, width, decay=0.02, batch=1 if bounds else 2)
    told = []

    def from_elsewhere(*arguments, initial_state, **options):
        def received(left, transition):
            told.append((left, transition))
            return initial_state

        return delta_rule_chunked(*arguments, chunk_size=16, initial_state=received, **options)

    options = {} if bounds is None else {"cu_seqlens": torch.tensor(bounds)}
    expected = outputs_and_gradients(delta_rule_naive, tensors, **options)
    assert_same(outputs_and_gradients(from_elsewhere, tensors, **options), expected, F64)
    ((left, transition),) = told
    *arguments, state = tensors
    torch.testing.assert_close(left, delta_rule_naive(*arguments, **options)[1], rtol=0, atol=F64)
    torch.testing.assert_close(left + transition @ state, expected["state"], rtol=0, atol=F64)
    assert bounds is None or not transition.any()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.usefixtures("short_segments")
def test_gradients_flow_through_what_the_received_state_is_made_of(width):
    *tensors, _ = inputs(9, width, decay=0.5)

    def form(*arguments):
        def received(left, transition):
            return transition @ left + left

        return delta_rule_chunked(*arguments, chunk_size=4, initial_state=received)

    assert torch.autograd.gradcheck(form, tensors)


@pytest.mark.parametrize("width", WIDTHS)
def test_half_precision_inputs_are_computed_in_float32(width):
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs(100, width)]
    exact = [tensor.detach().double().requires_grad_() for tensor in halves]
    expected = outputs_and_gradients(delta_rule_naive, exact)
    actual = outputs_and_gradients(delta_rule_chunked, halves, chunk_size=16)
    assert actual["o"].dtype == torch.bfloat16
    assert actual["state"].dtype == torch.float32
    assert_same({name: value.double() for name, value in actual.items()}, expected, BY_DTYPE[torch.bfloat16])


def wide_inputs(length: int, width: str) -> list[Tensor]:
    """q, k, v, log_decay, beta of two heads of 32."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, length, 2, 32)] * 3 + [(1, length, 2, 32)[: 3 if width == "head" else 4], (1, length, 2)]
    q, k, v, log, beta = (torch.randn(shape, generator=generator) for shape in shapes)
    return [tensor.requires_grad_() for tensor in (q, k, v, -F.softplus(log), beta.sigmoid())]


@pytest.mark.parametrize("width", WIDTHS)
def test_inputs_and_a_state_of_each_segment_are_kept_for_backward(width):
    tensors = wide_inputs(1200, width)
    saved = saved_tensors(lambda: delta_rule_chunked(*tensors))
    assert {storage_identity(tensor) for tensor in tensors} <= saved.keys()
    beyond = saved_bytes(lambda: delta_rule_chunked(*tensors), tensors)
    assert beyond == 3 * 4 * 2 * 32 * 32  # of three segments


@pytest.mark.parametrize("width", WIDTHS)
def test_arithmetic_grows_with_the_length_alone(width):
    def operations(length: int) -> int:
        tensors = wide_inputs(length, width)
        with FlopCounterMode(display=False) as counter:
            o, state = delta_rule_chunked(*tensors)
            torch.autograd.grad((o.sum() + state.sum()), tensors)
        return counter.get_total_flops()

    assert operations(2048) == 4 * operations(512)


def test_second_derivatives_are_refused():
    *tensors, _ = inputs(9, "head")
    o, _ = delta_rule_chunked(*tensors)
    (first,) = torch.autograd.grad(o.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


BOUNDARIES = [[0, 1, 50], [0, 49, 50], [0, 16, 32, 50], [0, 3, 4, 5, 17, 40, 50], [0, 50], list(range(51))]


@pytest.mark.parametrize("form", FORMS, ids=["naive", "chunked"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bounds", BOUNDARIES, ids=str)
def test_packed_documents_equal_documents_one_by_one(form, width, bounds):
    *tensors, state = (tensor.detach() for tensor in inputs(50, width, decay=0.02))
    packed, final = form(*tensors, initial_state=state, cu_seqlens=torch.tensor(bounds))
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        first = state if index == 0 else None
        o, last = form(*(tensor[:, start:end] for tensor in tensors), initial_state=first)
        torch.testing.assert_close(packed[:, start:end], o, rtol=0, atol=F64)
    torch.testing.assert_close(final, last, rtol=0, atol=F64)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bounds", BOUNDARIES, ids=str)
def test_chunked_equals_recurrence_on_packed_documents(width, bounds):
    tensors, cu_seqlens = inputs(50, width, decay=0.02), torch.tensor(bounds)
    expected = outputs_and_gradients(delta_rule_naive, tensors, cu_seqlens=cu_seqlens)
    actual = outputs_and_gradients(delta_rule_chunked, tensors, chunk_size=16, cu_seqlens=cu_seqlens)
    assert_same(actual, expected, F64)


@pytest.mark.parametrize("form", FORMS, ids=["naive", "chunked"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_sequence_may_be_cut_anywhere_and_continued_from_the_state(form, width):
    *tensors, state = (tensor.detach() for tensor in inputs(40, width))
    whole, final = form(*tensors, initial_state=state)
    parts = []
    for start, end in [(0, 1), (1, 18), (18, 40)]:
        o, state = form(*(tensor[:, start:end] for tensor in tensors), initial_state=state)
        parts.append(o)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=F64)
    torch.testing.assert_close(state, final, rtol=0, atol=F64)


@pytest.mark.parametrize("width", WIDTHS)
def test_float32_keeps_slow_decay_exact_behind_fast_decay(width):
    """Cumulative sums in float32 would lose the decay of the last tokens beside the sum of the first ones."""
    *tensors, _ = (tensor.detach().float() for tensor in inputs(64, width))
    log = tensors[3]
    log[:, :40], log[:, 40:] = -500.0, -0.01
    exact, _ = delta_rule_naive(*(tensor.double() for tensor in tensors))
    single, _ = delta_rule_chunked(*tensors, chunk_size=64)
    exact, single = exact[:, 40:], single[:, 40:].double()
    torch.testing.assert_close(single, exact, rtol=0, atol=F32_SHORT * exact.abs().max().item())


@pytest.mark.parametrize("form", FORMS, ids=["naive", "chunked"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"k": torch.ones(1, 8, 2, 4)},
            r"takes q, k \[B, L, G, K\] and v .* got q \[1, 8, 2, 5\], k \[1, 8, 2, 4\]",
        ),
        ({"v": torch.ones(1, 7, 4, 6)}, r"takes q, k \[B, L, G, K\] and v \[B, L, H, V\]"),
        ({"q": torch.ones(1, 8, 3, 5), "k": torch.ones(1, 8, 3, 5)}, "must divide those of v"),
        ({"beta": torch.ones(1, 8, 2)}, r"beta must be \[B, L, H\]"),
        ({"log_decay": torch.ones(1, 8, 4, 6)}, r"\[B, L, H, K\]; got .* log_decay \[1, 8, 4, 6\]"),
        ({"initial_state": torch.ones(1, 4, 6, 5)}, r"initial state must be \[B, H, K, V\] = \[1, 4, 5, 6\]"),
        ({"cu_seqlens": torch.tensor([0, 5])}, "cu_seqlens must run from 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(form, change, message):
    arguments = dict(zip(NAMES, inputs(8, "head"), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        form(**arguments)
