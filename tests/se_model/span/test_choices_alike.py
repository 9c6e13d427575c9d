"""Property 3: whatever the backend, the same inputs choose the same blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from se_model.span import select_blocks
from se_model.span.rules import RELEVANCIES, SHARES, SUMMARIES

# Rows are short, because triton's interpreter takes milliseconds for every block and every choice, and rarely
# too short for more candidates than are chosen.
LENGTHS = st.lists(st.sampled_from([12, 11, 9, 1, 5]), min_size=1, max_size=2, unique=True)
TOP_K = st.sampled_from([1, 2, 3, 0, 6])
QUERIES = st.one_of(
    st.just("all"),
    st.builds(lambda number: {"representative": number}, st.integers(1, 6)),
    st.builds(lambda number: {"stride": number}, st.integers(1, 5)),
)


@pytest.fixture(autouse=True)
def nothing_is_left_to_torch(monkeypatch):
    """The kernels serve every combination here: torch's choice would agree with itself."""

    def refuse(*_):
        raise AssertionError("the backend left the choice to torch")

    monkeypatch.setattr("se_model.span.fused.choose_with_torch", refuse)


def assert_alike(q, k, v, options):
    expected = select_blocks(q, k, v, **options, backend="naive")
    for backend in ("sdpa", "fused"):
        assert torch.equal(select_blocks(q, k, v, **options, backend=backend), expected), backend


@pytest.mark.parametrize("summary", SUMMARIES)
@settings(max_examples=140, deadline=None, derandomize=True)
@given(
    lengths=LENGTHS,
    block=st.sampled_from([2, 1, 3, 4]),
    blocks_per_chunk=st.integers(1, 3),
    top_k=TOP_K,
    groups=st.sampled_from([1, 2]),
    causal=st.booleans(),
    relevancy=st.sampled_from(RELEVANCIES),
    queries=QUERIES,
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_every_backend_chooses_the_same_blocks(
    summary, lengths, block, blocks_per_chunk, top_k, groups, causal, relevancy, queries, dtype, seed
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
        "relevancy": relevancy,
        "queries": queries,
        "selection": "causal" if causal else "chunk",
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
    }
    assert_alike(q, k, v, options)


@settings(max_examples=180, deadline=None, derandomize=True)
@given(
    lengths=LENGTHS,
    block=st.sampled_from([2, 1, 4]),
    blocks_per_chunk=st.integers(1, 3),
    top_k=TOP_K,
    groups=st.sampled_from([1, 2]),
    causal=st.booleans(),
    summary=st.sampled_from(["mean_key", "key_bounds", "representative_keys"]),
    relevancy=st.sampled_from(RELEVANCIES),
    queries=QUERIES,
    levels=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_ties_go_to_the_earlier_block_whatever_the_backend(
    lengths, block, blocks_per_chunk, top_k, groups, causal, summary, relevancy, queries, levels, seed
):
    # Small integers and blocks of powers of two: every sum is exact, and equal relevancies abound.
    generator = torch.Generator().manual_seed(seed)
    q, k = (
        torch.randint(-levels, levels + 1, (1, heads, sum(lengths), 2), generator=generator).float()
        for heads in (2, groups)
    )
    if relevancy in SHARES:
        # A softmax is not exact. Of queries of one sign and one channel, shares rise with that channel of the
        # summary, so that relevancies are equal where it is, and far from equal elsewhere.
        q = q.abs().clamp(min=1) * torch.tensor([(-1.0) ** seed, 0.0])
    options = {
        "chunk_size": block * blocks_per_chunk,
        "block_size": block,
        "top_k": top_k,
        "summary": summary,
        "relevancy": relevancy,
        "queries": queries,
        "selection": "causal" if causal else "chunk",
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0),
    }
    assert_alike(q, k, k, options)
