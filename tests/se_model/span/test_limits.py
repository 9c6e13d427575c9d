"""Property 1: retrieving all of the past is full attention, retrieving nothing is attention inside chunks."""

from itertools import pairwise

import pytest
import torch

from se_model.baselines import full_attention
from se_model.span import se_attention
from tests.tolerances import F64

LENGTHS = [1, 3, 4, 5, 15, 16, 17, 31, 33, 64, 67]
PACKED = [(0, 7, 40, 41, 90), (0, 16, 48, 53)]
ROWS = [(0, length) for length in LENGTHS] + PACKED
WAYS = [("naive", "chunk"), ("sdpa", "chunk"), ("naive", "causal"), ("sdpa", "causal")]


@pytest.mark.parametrize(("backend", "selection"), WAYS)
@pytest.mark.parametrize("bounds", ROWS, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_all_past_blocks_give_full_attention(draw, assert_same, bounds, backend, selection, groups):
    q, k, v = draw(bounds[-1], groups=groups)
    cu_seqlens = torch.tensor(bounds)
    span = se_attention(
        q,
        k,
        v,
        chunk_size=16,
        block_size=4,
        top_k=100,
        cu_seqlens=cu_seqlens,
        selection=selection,
        backend=backend,
    )
    assert_same(span, full_attention(q, k, v, cu_seqlens=cu_seqlens), (q, k, v), F64)


@pytest.mark.parametrize(("backend", "selection"), WAYS)
@pytest.mark.parametrize("bounds", ROWS, ids=str)
def test_no_block_gives_attention_inside_each_chunk(draw, assert_same, bounds, backend, selection):
    q, k, v = draw(bounds[-1])
    span = se_attention(
        q, k, v, chunk_size=16, block_size=4, top_k=0, cu_seqlens=torch.tensor(bounds), selection=selection,
        backend=backend,
    )  # fmt: skip
    chunks = [t for start, end in pairwise(bounds) for t in range(start, end, 16)]
    inside = full_attention(q, k, v, cu_seqlens=torch.tensor([*chunks, bounds[-1]]))
    assert_same(span, inside, (q, k, v), F64)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
def test_a_batch_and_an_own_scale_keep_the_limit(draw, assert_same, backend):
    q, k, v = draw(37, batch=3)
    span = se_attention(q, k, v, chunk_size=16, block_size=4, top_k=100, scale=0.7, backend=backend)
    assert_same(span, full_attention(q, k, v, scale=0.7), (q, k, v), F64)
