"""Property 3: every backend equals the oracle and names the same blocks; the table says what each serves."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from se_model.span import se_attention, select_blocks
from se_model.span.backends import BACKENDS, Request, resolve
from tests.tolerances import BY_DTYPE, F64, within

WAYS = [
    ("sdpa", "chunk", None),
    ("sdpa", "causal", None),
    ("sdpa", "causal", 8),
]
ROWS = [(0, n) for n in (1, 3, 4, 5, 15, 17, 31, 33, 64, 67)] + [(0, 7, 40, 41, 90), (0, 16, 48, 53)]


@pytest.mark.parametrize(("backend", "selection", "refresh"), WAYS)
@pytest.mark.parametrize("bounds", ROWS, ids=str)
@pytest.mark.parametrize(("groups", "summary"), [(4, "attention"), (2, "attention"), (1, "mean_key")])
def test_backend_equals_the_oracle(draw, assert_same, bounds, backend, selection, refresh, groups, summary):
    q, k, v = draw(bounds[-1], groups=groups)
    options = {
        "chunk_size": 16, "block_size": 4, "top_k": 3, "cu_seqlens": torch.tensor(bounds), "summary": summary,
        "selection": selection, "refresh": refresh,
    }  # fmt: skip
    fast = se_attention(q, k, v, **options, backend=backend)
    assert_same(fast, se_attention(q, k, v, **options, backend="naive"), (q, k, v), F64)


@pytest.mark.parametrize(("dtype", "tolerance"), BY_DTYPE.items(), ids=str)
@pytest.mark.parametrize(("backend", "selection", "refresh"), WAYS)
def test_backend_equals_the_oracle_in_every_dtype(
    draw, assert_same, dtype, tolerance, backend, selection, refresh
):
    q, k, v = draw(150, batch=2, width=16, dtype=dtype)
    options = {"chunk_size": 32, "block_size": 8, "top_k": 3, "selection": selection, "refresh": refresh}
    blocks = select_blocks(q, k, v, **options, backend=backend)
    assert torch.equal(blocks, select_blocks(q, k, v, **options, backend="naive"))
    fast = se_attention(q, k, v, **options, backend=backend)
    assert fast.dtype == dtype
    oracle = se_attention(*(x.double() for x in (q, k, v)), **options, blocks=blocks, backend="naive").to(
        dtype
    )
    assert_same(fast, oracle, (q, k, v), tolerance)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
def test_memory_layout_makes_no_difference(draw, assert_same, backend):
    q, k, v = draw(40)
    options = {"chunk_size": 16, "block_size": 4, "top_k": 3, "backend": backend}
    # The head dimension strided, and a gradient that is one number seen everywhere.
    strided = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v))
    expected = se_attention(q, k, v, **options)
    actual = se_attention(*strided, **options)
    assert_same(actual, expected, (q, k, v), F64)
    for one, other in zip(
        torch.autograd.grad(se_attention(q, k, v, **options).sum(), (q, k, v)),
        torch.autograd.grad((expected * torch.ones(8, dtype=q.dtype)).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **within(F64))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    block=st.sampled_from([1, 2, 4]),
    blocks_per_chunk=st.integers(1, 4),
    top_k=st.integers(0, 7),
    groups=st.sampled_from([1, 2, 4]),
    causal=st.booleans(),
    levels=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_ties_go_to_the_earlier_block_whatever_the_backend(
    lengths, block, blocks_per_chunk, top_k, groups, causal, levels, seed
):
    # Small integers and blocks of powers of two: every sum is exact, and equal relevancies abound.
    generator = torch.Generator().manual_seed(seed)
    q, k = (
        torch.randint(-levels, levels + 1, (1, heads, sum(lengths), 2), generator=generator).float()
        for heads in (4, groups)
    )
    options = {
        "chunk_size": block * blocks_per_chunk,
        "block_size": block,
        "top_k": top_k,
        "summary": "mean_key",
        "selection": "causal" if causal else "chunk",
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
    }
    assert torch.equal(
        select_blocks(q, k, k, **options, backend="sdpa"),
        select_blocks(q, k, k, **options, backend="naive"),
    )


def test_equal_relevancies_take_the_first_blocks():
    q = k = torch.ones(1, 1, 12, 2)
    blocks = select_blocks(q, k, k, chunk_size=4, block_size=1, top_k=3)
    assert blocks.tolist() == [[[[-1, -1, -1], [0, 1, 2], [0, 1, 2]]]]


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_shape_of_the_choice_is_promised_for_any_top_k(draw, backend):
    q, k, v = draw(50, batch=2)
    for top_k in (0, 1, 500):
        blocks = select_blocks(q, k, v, chunk_size=16, block_size=4, top_k=top_k, backend=backend)
        assert blocks.shape == (2, 2, 4, top_k)
        assert blocks.dtype == torch.int64
    assert blocks[0, 0, 3].tolist() == [*range(12), *[-1] * 488]


def test_many_scores_are_ranked_in_parts_with_the_same_result(draw, monkeypatch):
    q, k, v = draw(300)
    options = {"chunk_size": 16, "block_size": 4, "top_k": 3, "selection": "causal"}
    expected = select_blocks(q, k, v, **options)
    monkeypatch.setattr("se_model.span.selection._SCORES_AT_ONCE", 500)
    monkeypatch.setattr("se_model.span.selection._TOKENS_AT_ONCE", 32)
    assert torch.equal(select_blocks(q, k, v, **options), expected)


def test_a_backend_that_cannot_serve_says_why(draw):
    inputs = draw(20)
    with pytest.raises(ValueError, match=r"backend 'sdpa' does not serve selection='causal'"):
        se_attention(*inputs, chunk_size=8, block_size=4, selection="causal", backend="sdpa")
    with pytest.raises(ValueError, match="auto or one of merged, sdpa, naive; not 'flash'"):
        se_attention(*inputs, chunk_size=8, block_size=4, backend="flash")


def test_auto_takes_the_first_that_serves_and_logs_it_once(caplog):
    resolve.cache_clear()
    on_gpu = Request("cuda", torch.bfloat16, grouped=True, packed=True, selection="chunk")
    with caplog.at_level(logging.INFO, logger="se_model.span.backends"):
        assert resolve("auto", on_gpu).name == "sdpa"
        assert resolve("auto", on_gpu).name == "sdpa"
    assert len(caplog.records) == 1
    assert "merged runs on cpu, not on cuda" in caplog.text
    on_cpu = Request("cpu", torch.float32, grouped=False, packed=False, selection="causal")
    assert resolve("auto", on_cpu).name == "merged"
    with pytest.raises(ValueError, match=r"no backend .* does not take torch\.int64"):
        resolve("auto", Request("cpu", torch.int64, grouped=False, packed=False, selection="chunk"))
