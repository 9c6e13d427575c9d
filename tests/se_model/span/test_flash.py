"""Backend flash: what surrounds its kernel, and on a GPU the kernel itself, against the oracle."""

import inspect
import logging
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from se_model.span import backends, flash, flash_package, naive, select_blocks
from se_model.span.flash_package import flash_attn_varlen, has_flash_attn, has_torch_varlen, torch_varlen
from se_model.span.layout import cut
from se_model.span.options import SpanOptions
from tests.tolerances import BF16, EXACT, F64

CHUNK, BLOCK = 16, 4
TORCH_S_SIGNATURE = inspect.signature(varlen.varlen_attn)
ROWS = [(0, n) for n in (1, 3, 4, 5, 15, 17, 31, 33, 64, 67)] + [(0, 7, 40, 41, 90), (0, 16, 48, 53)]


def documented(
    q: Tensor, k: Tensor, v: Tensor, query_bounds: Tensor, key_bounds: Tensor, most_queries: int,
    most_keys: int, scale: float,
) -> Tensor:  # fmt: skip
    """What flash attention promises of a causal mask, row by row.

    It refuses what the real one would misread: bounds of another dtype or short of a token, wrong maxima.
    """
    assert query_bounds.dtype == key_bounds.dtype == torch.int32
    assert (query_bounds[-1], key_bounds[-1]) == (len(q), len(k))
    assert most_queries == query_bounds.diff().max()
    assert most_keys == key_bounds.diff().max()
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    outputs = []
    bounds = zip(pairwise(query_bounds.tolist()), pairwise(key_bounds.tolist()), strict=True)
    for (first, last), (first_key, last_key) in bounds:
        queries, keys, values = (
            x.transpose(0, 1) for x in (q[first:last], k[first_key:last_key], v[first_key:last_key])
        )
        future = torch.ones(last - first, last_key - first_key).triu(
            last_key - first_key - (last - first) + 1
        )
        logits = (queries @ keys.transpose(1, 2) * scale).masked_fill(future.bool(), -torch.inf)
        outputs.append((logits.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outputs)


def attend_both(inputs, bounds, *, top_k=3, selection="chunk", refresh=None, scale=0.3, kernel=documented):
    """Outputs of the backend and of the oracle for one choice of blocks."""
    q, k, v = inputs
    blocks = select_blocks(
        q, k, v, chunk_size=CHUNK, block_size=BLOCK, top_k=top_k, selection=selection, refresh=refresh,
        cu_seqlens=torch.tensor(bounds) if len(bounds) > 2 else None, backend="naive",
    )  # fmt: skip
    options = SpanOptions(CHUNK, BLOCK, top_k, selection=selection, refresh=refresh, scale=scale)
    layout = cut(CHUNK, BLOCK, options.queries_per_choice, bounds)
    given = (blocks, layout.counts(top_k), layout, options)
    return flash.attend(q, k, v, *given, kernel=kernel), naive.attend(q, k, v, *given)


@pytest.mark.parametrize(("selection", "refresh"), [("chunk", None), ("causal", None), ("causal", 8)])
@pytest.mark.parametrize("bounds", ROWS, ids=str)
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_outputs_and_gradients_are_the_oracle_s(draw, assert_same, bounds, selection, refresh, groups):
    inputs = draw(bounds[-1], groups=groups)
    found, expected = attend_both(inputs, bounds, selection=selection, refresh=refresh)
    assert_same(found, expected, inputs, F64)


@pytest.mark.parametrize("selection", ["chunk", "causal"])
@pytest.mark.parametrize("top_k", [0, 1, 50])
def test_batches_and_any_top_k_are_the_oracle_s(draw, assert_same, selection, top_k):
    inputs = draw(67, batch=3, groups=2)
    found, expected = attend_both(inputs, (0, 67), selection=selection, top_k=top_k)
    assert_same(found, expected, inputs, F64)


def test_an_evaluation_leaves_nothing_that_a_training_step_cannot_save(draw):
    seen = []

    def kernel(*given):
        seen.extend(x for x in given if isinstance(x, Tensor))
        return documented(*given)

    layout = cut(CHUNK, BLOCK, CHUNK, (0, 59))
    inputs = draw(59, groups=4)
    given = (torch.full((1, 4, 4, 0), -1), layout.counts(0), layout, SpanOptions(CHUNK, BLOCK, 0))
    with torch.inference_mode():
        flash.attend(*inputs, *given, kernel=kernel)
    seen.clear()
    flash.attend(*inputs, *given, kernel=kernel)
    assert len(seen) == 5
    assert not any(x.is_inference() for x in seen)


def test_half_precision_sums_the_gradients_of_a_key_wide(draw):
    # 64 chunks all retrieve the one block that lies before each of them, and far more than once.
    inputs = draw(1024, heads=1, groups=1, dtype=torch.bfloat16)
    wide = tuple(x.detach().double().requires_grad_() for x in inputs)
    layout = cut(CHUNK, BLOCK, CHUNK, (0, 1024))
    blocks = torch.zeros(1, 1, 64, 1, dtype=torch.int64)
    blocks[0, 0, 0] = -1
    given = (blocks, layout.counts(1), layout, SpanOptions(CHUNK, BLOCK, 1, scale=0.3))
    kernel_in_double = lambda q, k, v, *rest: documented(q.double(), k.double(), v.double(), *rest)  # noqa: E731
    found = flash.attend(*inputs, *given, kernel=kernel_in_double)
    expected = naive.attend(*wide, *given)
    for one, other in zip(
        torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), wide), strict=True
    ):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=BF16 / 4, atol=BF16)


def test_the_same_call_gives_the_same_bits(draw):
    inputs = draw(150, batch=2, dtype=torch.float32)
    gradients = [
        torch.autograd.grad(attend_both(inputs, (0, 150))[0].square().sum(), inputs) for _ in range(2)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def torch_s_kernel(*given, **options):
    """What torch's function promises of the arguments that this version of it takes."""
    called = TORCH_S_SIGNATURE.bind(*given, **options).arguments
    q, k, v, *bounds = (called.pop(name) for name in (
        "query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"
    ))  # fmt: skip
    assert called.pop("window_size") == (-1, 0)
    assert called.pop("enable_gqa") == (q.shape[1] != k.shape[1])
    return documented(q, k, v, *bounds, **called)


def flash_attn_s_kernel(q, k, v, *bounds, softmax_scale, causal, deterministic):
    assert causal
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    return documented(q, k, v, *bounds, softmax_scale)


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("kernel", [torch_varlen, flash_attn_varlen])
def test_either_kernel_is_asked_for_the_same_attention(draw, assert_same, monkeypatch, kernel, groups):
    monkeypatch.setattr(varlen, "varlen_attn", torch_s_kernel)
    package = SimpleNamespace(flash_attn_varlen_func=flash_attn_s_kernel)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    inputs = draw(90, groups=groups)
    found, expected = attend_both(inputs, (0, 7, 40, 41, 90), kernel=kernel)
    assert_same(found, expected, inputs, F64)


def test_torch_s_own_kernel_takes_fewer_key_heads_and_gives_gradients():
    q, k, v = (
        torch.randn(tokens, heads, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for tokens, heads in ((50, 8), (70, 2), (70, 2))
    )
    bounds = torch.zeros(3, dtype=torch.int32, device="meta")
    out = torch_varlen(q, k, v, bounds, bounds, 30, 40, 0.3)
    assert [x.shape for x in torch.autograd.grad(out.sum(), (q, k, v))] == [q.shape, k.shape, v.shape]


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Pretends that there is a GPU of a compute capability, and that torch is built for it."""

    def pretend(*capability: int) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
        has_torch_varlen.cache_clear()

    yield pretend
    monkeypatch.undo()
    has_torch_varlen.cache_clear()


def test_torch_s_kernel_goes_first_and_flash_attn_s_stands_in_for_it(draw, on_a_gpu, monkeypatch):
    monkeypatch.setattr(flash_package, "torch_varlen", lambda *given: "torch")
    monkeypatch.setattr(flash_package, "flash_attn_varlen", lambda *given: "flash-attn")
    for capability, chosen in (((7, 5), "flash-attn"), ((8, 0), "torch"), ((10, 0), "torch")):
        on_a_gpu(*capability)
        assert flash_package.varlen_attention(*range(8)) == chosen
        assert flash_package.varlen_name().startswith(chosen)


def test_a_torch_that_cannot_be_asked_for_it_is_passed_over(on_a_gpu, monkeypatch):
    monkeypatch.setattr(flash_package, "has_flash_attn", lambda: False)
    on_a_gpu(9, 0)
    assert flash_package.has_varlen_attention()
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, is_causal: None)  # torch 2.10's
    has_torch_varlen.cache_clear()
    assert not flash_package.has_varlen_attention()


def test_the_log_says_whose_kernel_it_is(on_a_gpu, caplog):
    on_a_gpu(9, 0)
    # Too large a block for `fused`, which comes first.
    request = backends.Request("cuda", torch.bfloat16, head_dim=128, block_size=192)
    backends.resolve.cache_clear()
    with caplog.at_level(logging.INFO, logger="se_model.span.backends"):
        assert backends.resolve("auto", request).name == "flash"
    backends.resolve.cache_clear()
    assert "on backend flash (torch's varlen_attn)" in caplog.text


def test_the_package_is_looked_for_but_not_imported():
    code = (
        "import sys, se_model.span.flash as f, se_model.span.flash_package as p;"
        "p.has_varlen_attention(); print('flash_attn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [
    pytest.param(torch_varlen, marks=pytest.mark.skipif(
        not has_torch_varlen(), reason="needs an Ampere GPU and torch 2.13"
    )),
    pytest.param(flash_attn_varlen, marks=pytest.mark.skipif(
        not (torch.cuda.is_available() and has_flash_attn()), reason="needs CUDA and flash-attn"
    )),
])  # fmt: skip
@pytest.mark.parametrize(("selection", "refresh"), [("chunk", CHUNK), ("causal", BLOCK)])
@pytest.mark.parametrize("width", [64, 128])
def test_the_kernel_gives_the_oracle_s_numbers(draw, kernel, selection, refresh, width):
    inputs = draw(1000, width=width, dtype=torch.bfloat16)
    q, k, v = (x.detach().cuda().requires_grad_() for x in inputs)
    wide = tuple(x.detach().double().requires_grad_() for x in inputs)
    blocks = select_blocks(
        *wide, chunk_size=CHUNK, block_size=BLOCK, top_k=3, selection=selection, backend="naive"
    )
    layout = cut(CHUNK, BLOCK, refresh, (0, 1000))
    given = (layout.counts(3), layout, SpanOptions(CHUNK, BLOCK, 3, selection=selection))
    found = flash.attend(q, k, v, blocks.cuda(), *given, kernel=kernel)
    expected = naive.attend(*wide, blocks, *given)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=BF16, atol=BF16)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), weights.to("cuda", torch.bfloat16)),
        torch.autograd.grad(expected, wide, weights),
        strict=True,
    ):
        torch.testing.assert_close(one.double().cpu(), other, rtol=2 * BF16, atol=2 * BF16)
