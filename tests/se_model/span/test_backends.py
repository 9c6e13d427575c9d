"""Property 3: every backend equals the oracle and names the same blocks; the table says what each serves."""

import logging
from dataclasses import replace

import pytest
import torch

from se_model.span import naive, se_attention, select_blocks
from se_model.span.backends import Backend, Request, resolve
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


def test_equal_relevancies_take_the_first_blocks():
    q = k = torch.ones(1, 1, 12, 2)
    blocks = select_blocks(q, k, k, chunk_size=4, block_size=1, top_k=3)
    assert blocks.tolist() == [[[[-1, -1, -1], [0, 1, 2], [0, 1, 2]]]]


@pytest.mark.parametrize("backend", ["naive", "sdpa", "fused", "auto"])
def test_shape_of_the_choice_is_promised_for_any_top_k(draw, backend):
    q, k, v = draw(50, batch=2, dtype=torch.float32)
    for top_k in (0, 1, 500):
        blocks = select_blocks(q, k, v, chunk_size=16, block_size=4, top_k=top_k, backend=backend)
        assert blocks.shape == (2, 2, 4, top_k)
        assert blocks.dtype == torch.int64
    assert blocks[0, 0, 3].tolist() == [*range(12), *[-1] * 488]


REQUEST = Request("cuda", torch.bfloat16, head_dim=128, grouped=True, packed=True, gradients=True)


@pytest.mark.parametrize(
    ("backend", "request_", "reason"),
    [
        ("fused", replace(REQUEST, device="mps"), "runs on cuda, not on mps"),
        ("fused", replace(REQUEST, dtype=torch.float64), "does not take torch.float64"),
        ("fused", replace(REQUEST, head_dim=264), "takes head dimensions up to 256, not 264"),
        ("fused", replace(REQUEST, value_dim=64), "takes values as wide as queries, not 64 beside 128"),
        ("fused", replace(REQUEST, block_size=192), "takes memory blocks of up to 128 tokens, not 192"),
        ("flash", replace(REQUEST, device="cpu"), "runs on cuda, not on cpu"),
        ("sdpa", replace(REQUEST, dtype=torch.int64), "does not take torch.int64"),
    ],
)
def test_a_backend_that_cannot_serve_says_why(backend, request_, reason):
    with pytest.raises(ValueError, match=f"^backend '{backend}' {reason}; choose another"):
        resolve(backend, request_)


def test_every_requirement_of_the_table_is_looked_at():
    modest = Backend(
        name="modest", attend=naive.attend, choose_blocks=naive.choose_blocks, head_dim_multiple=8,
        unequal_widths=False, grouped=False, packed=False, gradients=False, selections=frozenset({"chunk"}),
    )  # fmt: skip
    plain = Request("cpu", torch.float32, head_dim=8)
    assert modest.refusal(plain) is None
    assert modest.refusal(replace(plain, head_dim=12)) == "takes head dimensions that 8 divides, not 12"
    assert modest.refusal(replace(plain, value_dim=8)) is None
    assert modest.refusal(replace(plain, value_dim=16)) == "takes values as wide as queries, not 16 beside 8"
    assert modest.refusal(replace(plain, grouped=True)) == "takes as many key/value heads as query heads"
    assert modest.refusal(replace(plain, packed=True)) == "does not take packed documents"
    assert modest.refusal(replace(plain, gradients=True)) == "has no gradients"
    assert modest.refusal(replace(plain, selection="causal")) == "does not serve selection='causal'"
    absent = replace(modest, package="unheard-of", installed=lambda: False)
    assert absent.refusal(plain) == "needs the package unheard-of, which is not installed"


def test_a_call_asks_for_what_its_inputs_need(draw):
    q, k, v = draw(20)
    with pytest.raises(ValueError, match=r"backend 'fused' does not take torch\.float64"):
        se_attention(q, k, v, chunk_size=8, block_size=4, backend="fused")
    with pytest.raises(ValueError, match="auto or one of fused, flash, sdpa, naive; not 'quick'"):
        se_attention(q, k, v, chunk_size=8, block_size=4, backend="quick")


def test_auto_takes_the_first_that_serves_and_logs_it_once(caplog):
    resolve.cache_clear()
    with caplog.at_level(logging.INFO, logger="se_model.span.backends"):
        assert resolve("auto", REQUEST).name == "fused"
        assert resolve("auto", REQUEST).name == "fused"
    assert len(caplog.records) == 1
    assert "on backend fused" in caplog.text
    assert "the first choice" in caplog.text
    assert resolve("auto", replace(REQUEST, head_dim=512)).name == "sdpa"
    assert resolve("auto", replace(REQUEST, value_dim=64)).name == "sdpa"
    # Also where triton's interpreter could run the kernels: it is for tests.
    assert resolve("auto", replace(REQUEST, device="cpu")).name == "sdpa"
    with pytest.raises(ValueError, match=r"no backend .* does not take torch\.int64"):
        resolve("auto", replace(REQUEST, dtype=torch.int64))
