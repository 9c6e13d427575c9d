"""Property 2: no output depends on a later token, except, under "chunk" selection, through the choice."""

import pytest
import torch

from se_model.span import se_attention, select_blocks
from tests.tolerances import F64_SAME

LENGTH = 53
TOKENS = [0, 1, 15, 16, 21, 33, 47, 52]
OPTIONS = {"chunk_size": 16, "block_size": 4, "top_k": 2}


def changed_at(inputs, token):
    """The inputs with q, k and v of one token replaced by something large."""
    copies = [x.detach().clone() for x in inputs]
    for x in copies:
        x[:, :, token] = 50 * torch.randn(x[:, :, token].shape, generator=torch.Generator().manual_seed(5))
    return copies


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize("token", TOKENS)
def test_with_the_choice_held_fixed_a_token_changes_no_earlier_output(draw, backend, token):
    inputs = draw(LENGTH)
    blocks = select_blocks(*inputs, **OPTIONS)
    before = se_attention(*inputs, **OPTIONS, blocks=blocks, backend=backend)
    after = se_attention(*changed_at(inputs, token), **OPTIONS, blocks=blocks, backend=backend)
    torch.testing.assert_close(after[:, :, :token], before[:, :, :token], rtol=0, atol=F64_SAME)
    assert not torch.allclose(after[:, :, token], before[:, :, token])


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize("token", TOKENS)
def test_an_output_s_gradient_reaches_no_later_token(draw, backend, token):
    inputs = draw(LENGTH)
    output = se_attention(*inputs, **OPTIONS, backend=backend)
    for gradient in torch.autograd.grad(output[:, :, : token + 1].square().sum(), inputs):
        assert torch.count_nonzero(gradient[:, :, token + 1 :]) == 0


@pytest.mark.parametrize("backend", ["naive", "sdpa"])
@pytest.mark.parametrize("refresh", [None, 2, 8, 16])
@pytest.mark.parametrize("token", TOKENS)
def test_causal_selection_lets_no_token_change_an_earlier_output_or_choice(draw, backend, refresh, token):
    inputs = draw(LENGTH)
    options = {**OPTIONS, "selection": "causal", "refresh": refresh, "backend": backend}
    changed = changed_at(inputs, token)
    before, after = se_attention(*inputs, **options), se_attention(*changed, **options)
    torch.testing.assert_close(after[:, :, :token], before[:, :, :token], rtol=0, atol=F64_SAME)
    earlier = token // (refresh or 4) + 1
    one, other = (select_blocks(*x, **options)[:, :, :earlier] for x in (inputs, changed))
    assert torch.equal(one, other)


def test_causal_selection_uses_the_queries_just_before(draw):
    q, k, v = draw(64)
    options = {**OPTIONS, "summary": "mean_key", "selection": "causal", "refresh": 4}
    blocks = select_blocks(q, k, v, **options)
    # The queries of tokens 28 to 31 choose for tokens 32 to 35, and for nobody else.
    with torch.no_grad():
        q[:, :, 28:32] *= -1
    rows = (select_blocks(q, k, v, **options) != blocks).any(-1).any(1)[0]
    assert rows[8]
    assert rows.sum() == 1


def test_chunk_selection_sees_the_whole_chunk(draw):
    inputs = draw(64)
    blocks = select_blocks(*inputs, **OPTIONS)
    changed = select_blocks(*changed_at(inputs, 63), **OPTIONS)
    assert torch.equal(changed[:, :, :3], blocks[:, :, :3])
    assert not torch.equal(changed[:, :, 3], blocks[:, :, 3])
