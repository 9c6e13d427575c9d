"""Every way of the sdpa backend equals the oracle: on a CPU in parts, elsewhere in causal or masked calls."""

import pytest
import torch

from se_model.span import naive, se_attention, select_blocks
from se_model.span.layout import cut
from se_model.span.options import SpanOptions
from se_model.span.sdpa import causal_calls, masked_calls, merged_parts, parts, triangle
from tests.tolerances import F32, F64

ROWS = [(0, n) for n in (1, 3, 4, 5, 15, 16, 17, 31, 33, 64, 67)] + [(0, 7, 40, 41, 90), (0, 16, 48, 53)]
WAYS = [
    (merged_parts, None, "chunk"),
    (merged_parts, 8, "causal"),
    (causal_calls, None, "chunk"),
    (causal_calls, 16, "causal"),
    (masked_calls, None, "chunk"),
    (masked_calls, 16, "causal"),
    (masked_calls, 8, "causal"),
    (masked_calls, 2, "causal"),
]


@pytest.fixture
def small_parts(monkeypatch):
    """Cuts short rows as long ones are cut: triangles of 4 tokens, 8 tokens in a call."""
    monkeypatch.setattr(triangle, "SIDE", 4)
    monkeypatch.setattr(parts, "_TOKENS", 8)


def prepared(inputs, bounds, refresh, selection, *, vary=False, summary="attention"):
    """What a backend's ``attend`` is given; ``vary`` leaves every third choice one block short."""
    refresh = refresh or 16
    packed = torch.tensor(bounds) if len(bounds) > 2 else None
    options = {"chunk_size": 16, "block_size": 4, "top_k": 3, "cu_seqlens": packed, "summary": summary}
    causal = {"selection": "causal", "refresh": refresh} if selection == "causal" else {}
    blocks = select_blocks(*inputs, **options, **causal, backend="naive")
    if vary:
        last = (blocks[:, :, ::3] >= 0).sum(-1, keepdim=True) - 1
        blocks[:, :, ::3] = blocks[:, :, ::3].scatter(-1, last.clamp(min=0), -1)
    counts = tuple((blocks[0, 0] >= 0).sum(-1).tolist())
    return blocks, counts, cut(16, 4, refresh, tuple(bounds)), SpanOptions(16, 4, 3, **causal, scale=0.3)


@pytest.mark.parametrize("vary", [False, True])
@pytest.mark.parametrize(("way", "refresh", "selection"), WAYS)
@pytest.mark.parametrize("bounds", ROWS, ids=str)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_way_equals_the_oracle(draw, assert_same, small_parts, bounds, way, refresh, selection, groups, vary):
    inputs = draw(bounds[-1], groups=groups)
    given = prepared(inputs, bounds, refresh, selection, vary=vary)
    assert_same(way.attend(*inputs, *given), naive.attend(*inputs, *given), inputs, F64)


@pytest.mark.parametrize(("way", "refresh", "selection"), WAYS)
@pytest.mark.parametrize("heads", [1, 4])
def test_way_takes_batches(draw, assert_same, small_parts, way, refresh, selection, heads):
    inputs = draw(75, batch=3, heads=heads, groups=1)
    given = prepared(inputs, (0, 75), refresh, selection)
    assert_same(way.attend(*inputs, *given), naive.attend(*inputs, *given), inputs, F64)


@pytest.mark.parametrize(("way", "refresh", "selection"), WAYS)
@pytest.mark.parametrize("bounds", [(0, 1), (0, 67), (0, 7, 40, 41, 90)], ids=str)
@pytest.mark.parametrize(("groups", "values"), [(4, 5), (2, 13)])
def test_way_takes_values_of_another_width(
    draw, assert_same, small_parts, bounds, way, refresh, selection, groups, values
):
    inputs = draw(bounds[-1], groups=groups, value_width=values)
    given = prepared(inputs, bounds, refresh, selection, summary="mean_key")
    assert_same(way.attend(*inputs, *given), naive.attend(*inputs, *given), inputs, F64)


@pytest.mark.parametrize(("way", "refresh", "selection"), WAYS)
def test_gradients_are_those_of_finite_differences(draw, small_parts, way, refresh, selection):
    inputs = draw(39, heads=2, groups=1, width=2)
    given = prepared(inputs, (0, 39), refresh, selection)
    assert torch.autograd.gradcheck(lambda *x: way.attend(*x, *given), inputs, fast_mode=True)


@pytest.mark.parametrize("chunk", [64, 128, 192, 256, 640])
@pytest.mark.parametrize("length", [127, 128, 129, 255, 256, 257, 383, 385, 641, 1025])
def test_sizes_at_which_the_triangle_is_cut(draw, assert_same, chunk, length):
    inputs = draw(length, heads=2, groups=1)
    options = {"chunk_size": chunk, "block_size": 32, "top_k": 2}
    fast = se_attention(*inputs, **options, backend="sdpa")
    assert_same(fast, se_attention(*inputs, **options, backend="naive"), inputs, F64)


def test_chunks_of_thousands_of_tokens(draw, assert_same):
    inputs = draw(2900, heads=1, groups=1, width=4, dtype=torch.float32)
    options = {"chunk_size": 2048, "block_size": 32, "top_k": 3}
    blocks = select_blocks(*inputs, **options)
    wide = se_attention(*(x.double() for x in inputs), **options, blocks=blocks, backend="naive")
    assert_same(se_attention(*inputs, **options, blocks=blocks, backend="sdpa"), wide.float(), inputs, F32)


def test_gradients_are_the_same_bits_in_every_run(draw):
    inputs = draw(1500, dtype=torch.float32)
    options = {"chunk_size": 512, "block_size": 16, "top_k": 4}
    first, second = (
        torch.autograd.grad(se_attention(*inputs, **options).square().sum(), inputs) for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
