"""Property 3: whatever the backend, the same inputs choose the same blocks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from se_model.span import select_blocks


# Rows are short: triton's interpreter takes milliseconds for every block.
@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=2),
    block=st.sampled_from([2, 4, 5]),
    blocks_per_chunk=st.integers(1, 4),
    top_k=st.integers(0, 7),
    groups=st.sampled_from([1, 2]),
    causal=st.booleans(),
    summary=st.sampled_from(["attention", "mean_key"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_every_backend_chooses_the_same_blocks(
    lengths, block, blocks_per_chunk, top_k, groups, causal, summary, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(1, heads, sum(lengths), 8, generator=generator).to(dtype) for heads in (2, groups, groups)
    )
    options = {
        "chunk_size": block * blocks_per_chunk,
        "block_size": block,
        "top_k": top_k,
        "summary": summary,
        "selection": "causal" if causal else "chunk",
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
    }
    expected = select_blocks(q, k, v, **options, backend="naive")
    for backend in ("sdpa", "fused"):
        assert torch.equal(select_blocks(q, k, v, **options, backend=backend), expected), backend


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=2),
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
    expected = select_blocks(q, k, k, **options, backend="naive")
    for backend in ("sdpa", "fused"):
        assert torch.equal(select_blocks(q, k, k, **options, backend=backend), expected), backend
