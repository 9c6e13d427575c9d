"""The oracle is right: by a mask spelt out token by token, a choice worked by hand, finite differences."""

import pytest
import torch

from se_model.span import se_attention, select_blocks
from tests.tolerances import F64

SPANS = [("chunk", None, 16), ("causal", None, 4), ("causal", 8, 8)]


@pytest.mark.parametrize(("selection", "refresh", "queries"), SPANS)
@pytest.mark.parametrize("bounds", [(0, 1), (0, 17), (0, 67), (0, 5, 40, 41, 75)], ids=str)
def test_naive_is_attention_under_the_mask_that_its_blocks_spell_out(
    draw, masked_attention, span_mask, assert_same, bounds, selection, refresh, queries
):
    q, k, v = draw(bounds[-1])
    options = {
        "chunk_size": 16,
        "block_size": 4,
        "top_k": 3,
        "selection": selection,
        "refresh": refresh,
        "cu_seqlens": torch.tensor(bounds),
        "backend": "naive",
    }
    blocks = select_blocks(q, k, v, **options)
    visible = span_mask(blocks, q.shape[1], bounds, chunk=16, block=4, queries=queries)
    assert_same(se_attention(q, k, v, **options), masked_attention(q, k, v, visible), (q, k, v), F64)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
def test_a_choice_worked_by_hand(backend):
    # Blocks of 2, chunks of 4, one head of width 1. Mean keys 1, 5, -3, 2, 2, 0; queries sum to 36, 4, -4.
    k = torch.tensor([0.0, 2, 4, 6, -3, -3, 2, 2, 1, 3, 0, 0]).view(1, 1, 12, 1)
    q = torch.tensor([9.0, 9, 9, 9, 1, 1, 1, 1, -1, -1, -1, -1]).view(1, 1, 12, 1)
    blocks = select_blocks(q, k, k, chunk_size=4, block_size=2, top_k=2, summary="mean_key", backend=backend)
    # Chunk 1 has both blocks before it; chunk 2 wants the smallest of (1, 5, -3, 2): blocks 2 and 0.
    assert blocks.tolist() == [[[[-1, -1], [0, 1], [0, 2]]]]


# Chunk 2 has blocks 0 to 3, whose keys lie in 0..2, 4..6, -3..-3 and -4..2.
@pytest.mark.parametrize(
    ("number", "selection", "expected"),
    [
        # -3, the farthest from the mean 0, may reach 0, -12, 9, 12.
        (1, "chunk", [2, 3]),
        # The first 1 judges, too: 2, 6, -3, 2. Shares of -3: 0, 0, 0.05, 0.95; of 1: 0.02, 0.96, 0, 0.02.
        (2, "chunk", [1, 3]),
        # The 3s of chunk 1 are all at their mean, so the first judges: 6, 18, -9, 6. Block 0 comes before 3.
        (1, "causal", [0, 1]),
    ],
)
@pytest.mark.parametrize("backend", ["naive", "sdpa", "fused"])
def test_a_choice_by_the_mass_of_bounds_worked_by_hand(backend, number, selection, expected):
    k = torch.tensor([0.0, 2, 4, 6, -3, -3, 2, -4, 5, 5, 5, 5]).view(1, 1, 12, 1)
    q = torch.tensor([7.0, 7, 7, 7, 3, 3, 3, 3, 1, 1, 1, -3]).view(1, 1, 12, 1)
    blocks = select_blocks(
        q, k, k, chunk_size=4, block_size=2, top_k=2, scale=1.0, summary="key_bounds", relevancy="mass",
        queries={"representative": number}, selection=selection,
        refresh=4 if selection == "causal" else None, backend=backend,
    )  # fmt: skip
    assert blocks.tolist() == [[[[-1, -1], [0, 1], expected]]]


# Four of a block's six keys lie farthest from their mean: of block 0 not (3, 0), of block 1 the first four.
# Query (1, 0) scores the blocks 0, 1, 0.5, which is shares of 0.19, 0.51, 0.31; (0, 0.5) scores them
# 4.5, 0, 4, shares of 0.62, 0.01, 0.37.
@pytest.mark.parametrize(
    ("relevancy", "expected"), [("sum", [0, 2]), ("max", [0, 2]), ("mass", [0, 2]), ("peak", [0, 1])]
)
@pytest.mark.parametrize("backend", ["naive", "sdpa", "fused"])
def test_a_choice_by_representative_keys_worked_by_hand(backend, relevancy, expected):
    blocks = [
        [(0, 9), (0, -9), (3, 0), (0, 9), (0, -9), (1, 0)],
        [(1, 0)] * 6,
        [(0.5, 8), (0.5, -8)] * 3,
        [(0, 0)] * 6,
    ]
    k = torch.tensor(blocks, dtype=torch.float32).view(1, 1, 24, 2)
    q = torch.full((24, 2), 9.0)
    q[18], q[23] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5])
    q = q.view(1, 1, 24, 2)
    found = select_blocks(
        q, k, k, chunk_size=6, block_size=6, top_k=2, scale=1.0, summary="representative_keys",
        relevancy=relevancy, queries={"stride": 5}, backend=backend,
    )  # fmt: skip
    assert found[0, 0, 3].tolist() == expected


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize("scale", [0.02, 4.0])
def test_the_attention_summary_is_the_mean_of_the_block_s_attention_over_itself(draw, backend, scale):
    q, k, v = (x.detach() for x in draw(64, heads=2, groups=1))
    expected = []
    for chunk in range(4):
        scores = []
        for block in range(chunk * 4):
            tokens = slice(block * 4, block * 4 + 4)
            score = 0.0
            for head in range(2):
                logits = q[0, head, tokens] @ k[0, 0, tokens].T * scale
                summary = (logits.softmax(-1) @ v[0, 0, tokens]).mean(0)
                score += sum(float(q[0, head, t] @ summary) for t in range(chunk * 16, chunk * 16 + 16))
            scores.append(score)
        best = sorted(sorted(range(len(scores)), key=lambda j: -scores[j])[:3])
        expected.append(best + [-1] * (3 - len(best)))
    blocks = select_blocks(q, k, v, chunk_size=16, block_size=4, top_k=3, scale=scale, backend=backend)
    assert blocks[0, 0].tolist() == expected


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize(("selection", "refresh"), [("chunk", None), ("causal", 2)])
def test_gradients_are_those_of_finite_differences(draw, backend, selection, refresh):
    inputs = draw(11, heads=2, groups=1, width=3)
    options = {"chunk_size": 4, "block_size": 2, "top_k": 1, "selection": selection, "refresh": refresh}
    blocks = select_blocks(*inputs, **options)

    def attend(q, k, v):
        return se_attention(q, k, v, **options, blocks=blocks, backend=backend)

    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize("summary", ["mean_key", "key_bounds", "representative_keys"])
@pytest.mark.parametrize(
    ("bounds", "values"), [((0, 1), 13), ((0, 67), 5), ((0, 5, 40, 41, 75), 13)], ids=str
)
def test_values_may_be_narrower_or_wider_than_queries(
    draw, masked_attention, span_mask, assert_same, bounds, values, summary, backend
):
    q, k, v = draw(bounds[-1], value_width=values)
    options = {
        "chunk_size": 16, "block_size": 4, "top_k": 3, "cu_seqlens": torch.tensor(bounds), "summary": summary,
        "relevancy": "peak", "queries": {"representative": 3}, "backend": backend,
    }  # fmt: skip
    blocks = select_blocks(q, k, v, **options)
    # The values do not judge: any others of their number give the same choice.
    assert torch.equal(blocks, select_blocks(q, k, k, **options))
    visible = span_mask(blocks, q.shape[1], bounds, chunk=16, block=4, queries=16)
    assert_same(se_attention(q, k, v, **options), masked_attention(q, k, v, visible), (q, k, v), F64)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
def test_the_papers_summary_is_refused_where_values_have_another_width(draw, backend):
    q, k, v = draw(20, value_width=5)
    options = {"chunk_size": 8, "block_size": 4, "backend": backend}
    for call in (se_attention, select_blocks):
        with pytest.raises(
            ValueError, match=r'summary="attention" has the 5.*queries of 8: use .*"mean_key"'
        ):
            call(q, k, v, top_k=1, **options)
    # Nothing is compared where nothing is chosen, or where the choice is given.
    se_attention(q, k, v, top_k=0, **options)
    blocks = select_blocks(q, k, v, top_k=1, summary="mean_key", **options)
    se_attention(q, k, v, top_k=1, blocks=blocks, **options)


def test_the_choice_carries_no_gradient(draw):
    q, k, v = draw(40)
    assert not select_blocks(q, k, v, chunk_size=16, block_size=4, top_k=2).requires_grad
