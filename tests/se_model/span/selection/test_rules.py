"""Properties 1 to 4, decoding and memory, for every summary, relevancy and sample of queries."""

from dataclasses import asdict
from itertools import pairwise, product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from se_model.span import se_attention, select_blocks
from se_model.span.decoding import decode, start_decoding
from se_model.span.options import SpanOptions
from se_model.span.rules import RELEVANCIES, SUMMARIES, as_sample
from tests.tolerances import F64, F64_SAME, within

QUERIES = ("all", {"representative": 3}, {"stride": 3})
RULES = [
    {"summary": summary, "relevancy": relevancy, "queries": queries}
    for summary, relevancy, queries in product(SUMMARIES, RELEVANCIES, QUERIES)
]
SIZES = {"chunk_size": 16, "block_size": 4, "top_k": 2}
SELECTIONS = [{"selection": "chunk"}, {"selection": "causal"}, {"selection": "causal", "refresh": 2}]


def named(rule):
    return "-".join(str(word) for word in rule.values())


@pytest.fixture(params=RULES, ids=named)
def rule(request):
    return request.param


@pytest.mark.parametrize("selection", SELECTIONS, ids=named)
def test_as_many_blocks_as_there_are_is_full_attention(draw, masked_attention, rule, selection):
    q, k, v = draw(67)
    everything = se_attention(q, k, v, **SIZES | {"top_k": 100}, **rule, **selection)
    visible = torch.ones(67, 67, dtype=torch.bool).tril()
    torch.testing.assert_close(everything, masked_attention(q, k, v, visible), **within(F64))


@pytest.mark.parametrize("selection", SELECTIONS, ids=named)
def test_outputs_gradients_and_choices_are_the_oracle_s(draw, assert_same, rule, selection):
    inputs = draw(53, heads=2, groups=1)
    options = {**SIZES, **rule, **selection}
    blocks = select_blocks(*inputs, **options, backend="naive")
    assert torch.equal(select_blocks(*inputs, **options, backend="sdpa"), blocks)
    fast, slow = (se_attention(*inputs, **options, backend=backend) for backend in ("sdpa", "naive"))
    assert_same(fast, slow, inputs, F64)


@pytest.mark.parametrize("selection", SELECTIONS[1:], ids=named)
def test_causal_selection_lets_no_token_change_an_earlier_output(draw, rule, selection):
    inputs = [x.detach() for x in draw(60)]
    before = se_attention(*inputs, **SIZES, **rule, **selection)
    for token in (15, 16, 33, 52):
        changed = [x.clone() for x in inputs]
        for x in changed:
            x[:, :, token] *= -40
        after = se_attention(*changed, **SIZES, **rule, **selection)
        torch.testing.assert_close(after[:, :, :token], before[:, :, :token], rtol=0, atol=F64_SAME)


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
def test_a_block_that_is_no_candidate_has_no_say(draw, rule, backend):
    """Shares of a query's mass are out of the candidates alone."""
    q, k, v = (x.detach() for x in draw(64, heads=2, groups=1))
    blocks = select_blocks(q, k, v, **SIZES, **rule, backend=backend)
    k, v = k.clone(), v.clone()
    k[:, :, 48:] *= 100
    v[:, :, 48:] *= -100
    assert torch.equal(select_blocks(q, k, v, **SIZES, **rule, backend=backend), blocks)
    k[:, :, 32:] *= 100
    assert torch.equal(select_blocks(q, k, v, **SIZES, **rule, backend=backend)[:, :, :3], blocks[:, :, :3])


@pytest.mark.parametrize("selection", SELECTIONS, ids=named)
def test_a_packed_row_is_its_documents_one_by_one(draw, assert_same, rule, selection):
    inputs, bounds = draw(90), (0, 5, 40, 41, 90)
    options = {**SIZES, **rule, **selection}
    packed = se_attention(*inputs, **options, cu_seqlens=torch.tensor(bounds))
    parts = [
        se_attention(*(x[:, :, start:end] for x in inputs), **options) for start, end in pairwise(bounds)
    ]
    assert_same(packed, torch.cat(parts, dim=2), inputs, F64)


@pytest.mark.parametrize(("refresh", "prompt", "steps"), [(None, 1, 1), (8, 21, 1), (2, 30, 7), (16, 47, 5)])
def test_decoding_gives_what_the_whole_row_has(draw, rule, refresh, prompt, steps):
    q, k, v = (x.detach() for x in draw(60, batch=2))
    words = {**rule, "queries": as_sample(rule["queries"])}
    options = SpanOptions(**SIZES, **words, selection="causal", refresh=refresh)
    whole = se_attention(q, k, v, **asdict(options), backend="sdpa")
    state = start_decoding(q[:, :, :prompt], k[:, :, :prompt], v[:, :, :prompt], options)
    parts = []
    while state.length < 60:
        end = min(60, state.length + steps)
        output, state = decode(q[:, :, state.length : end], k[:, :, :end], v[:, :, :end], state)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole[:, :, prompt:], **within(F64))


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that anything within returns."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor) and x._base is None:
                self.numbers = max(self.numbers, x.numel())
        return result


@pytest.mark.parametrize("selection", SELECTIONS, ids=named)
def test_a_long_row_is_compared_in_parts_with_the_same_result(draw, monkeypatch, rule, selection):
    q, k, v = (x.detach() for x in draw(600, width=4))
    options = {**SIZES, **rule, **selection}
    expected = select_blocks(q, k, v, **options)
    at_once = 2500
    monkeypatch.setattr("se_model.span.selection.choose.SCORES_AT_ONCE", at_once)
    monkeypatch.setattr("se_model.span.selection.relevancy.SCORES_AT_ONCE", at_once)
    monkeypatch.setattr("se_model.span.selection.summaries._TOKENS_AT_ONCE", 32)
    monkeypatch.setattr("se_model.span.selection.representatives._TOKENS_AT_ONCE", 32)
    with Largest() as largest:
        found = select_blocks(q, k, v, **options)
    assert torch.equal(found, expected)
    # The queries are 4 heads x 600 x 4 numbers; all comparisons of the row would be 4 x 600 x 150.
    assert largest.numbers <= max(4 * 600 * 4, 2 * at_once)
