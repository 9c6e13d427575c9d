"""Tokens decoded over a cache have the outputs that causal span attention gives them in the whole row."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from se_model.span import se_attention
from se_model.span.decoding import decode, start_decoding
from se_model.span.options import SpanOptions
from tests.tolerances import F32, F64, within

LENGTH = 75
CHUNK, BLOCK = 24, 4


def options_of(*, top_k=2, summary="attention", refresh=None, scale=None):
    return SpanOptions(CHUNK, BLOCK, top_k, summary, "causal", refresh, scale)


def whole_row(inputs, options):
    return se_attention(*inputs, **asdict(options), backend="naive")


def decode_in_steps(inputs, options, prompt, steps):
    """Outputs of everything after the prompt, decoded in steps of these many tokens, round and round."""
    q, k, v = (x.detach() for x in inputs)
    state = start_decoding(q[:, :, :prompt], k[:, :, :prompt], v[:, :, :prompt], options)
    outputs = []
    while state.length < q.shape[2]:
        end = min(q.shape[2], state.length + steps[len(outputs) % len(steps)])
        output, state = decode(q[:, :, state.length : end], k[:, :, :end], v[:, :, :end], state)
        outputs.append(output)
    return torch.cat(outputs, dim=2), state


@pytest.mark.parametrize("summary", ["attention", "mean_key"])
@pytest.mark.parametrize("refresh", [None, 1, 2, 6, 8, CHUNK])
@pytest.mark.parametrize("prompt", [1, 3, 4, 23, 24, 25, 48, 61])
def test_token_by_token_equals_the_whole_row(draw, summary, refresh, prompt):
    inputs, options = draw(LENGTH, batch=2), options_of(summary=summary, refresh=refresh)
    output, _ = decode_in_steps(inputs, options, prompt, [1])
    torch.testing.assert_close(output, whole_row(inputs, options)[:, :, prompt:], **within(F64))


@pytest.mark.parametrize("steps", [[2], [7], [1, 30, 3], [LENGTH]])
@pytest.mark.parametrize("prompt", [1, 5, 24, 47])
def test_several_tokens_at_once_equal_the_whole_row(draw, steps, prompt):
    inputs, options = draw(LENGTH), options_of(refresh=6, scale=0.7)
    output, _ = decode_in_steps(inputs, options, prompt, steps)
    torch.testing.assert_close(output, whole_row(inputs, options)[:, :, prompt:], **within(F64))


@pytest.mark.parametrize("top_k", [0, 1, 1000])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 1), (6, 2)])
def test_any_grouping_and_any_number_of_blocks(draw, top_k, heads, groups):
    inputs, options = draw(LENGTH, heads=heads, groups=groups), options_of(top_k=top_k)
    output, _ = decode_in_steps(inputs, options, 10, [1, 2])
    torch.testing.assert_close(output, whole_row(inputs, options)[:, :, 10:], **within(F64))


@pytest.mark.parametrize("summary", ["mean_key", "key_bounds", "representative_keys"])
@pytest.mark.parametrize(("values", "prompt"), [(5, 1), (13, 30)])
def test_values_may_have_another_width_than_queries(draw, summary, values, prompt):
    inputs = draw(LENGTH, batch=2, value_width=values)
    options = options_of(summary=summary, refresh=6)
    output, _ = decode_in_steps(inputs, options, prompt, [1, 9])
    torch.testing.assert_close(output, whole_row(inputs, options)[:, :, prompt:], **within(F64))


def test_a_summary_of_the_values_width_is_refused(draw):
    with pytest.raises(ValueError, match='summary="attention" has the 5 dimensions of values'):
        start_decoding(*draw(9, value_width=5), options_of())


def tensors(state):
    return {name: value for name, value in vars(state).items() if isinstance(value, Tensor)}


def test_single_precision_is_enough(draw):
    inputs, options = draw(LENGTH, dtype=torch.float32), options_of()
    output, _ = decode_in_steps(inputs, options, 10, [1])
    torch.testing.assert_close(output, whole_row(inputs, options)[:, :, 10:], **within(F32))


@pytest.mark.parametrize("summary", ["attention", "mean_key"])
@pytest.mark.parametrize("prompt", [1, 30, 48])
def test_decoding_arrives_at_the_state_that_a_longer_prompt_starts_with(draw, summary, prompt):
    inputs, options = draw(LENGTH), options_of(summary=summary, refresh=8)
    _, state = decode_in_steps(inputs, options, prompt, [1, 9])
    expected = start_decoding(*inputs, options)
    torch.testing.assert_close(tensors(state), tensors(expected), **within(F64))
    assert (state.options, state.length) == (expected.options, expected.length)


def test_the_state_grows_by_summaries_alone(draw):
    q, k, v = draw(10 * CHUNK, heads=2, groups=2, width=8)
    state = start_decoding(q, k, v, options_of())
    held = sum(x.untyped_storage().nbytes() for x in tensors(state).values())
    blocks = 10 * CHUNK // BLOCK
    # Summaries, one sum of queries and one key for each head; the ids of two blocks.
    assert held == 2 * 8 * 8 * (blocks + 1 + 1) + 2 * 8 * 2


def test_a_step_reads_no_key_outside_its_chunk_and_its_blocks(draw):
    """What is not retrieved may be anything: it was judged by its summary."""
    q, k, v = (x.detach() for x in draw(LENGTH))
    state = start_decoding(q[:, :, :50], k[:, :, :50], v[:, :, :50], options_of())
    clean, _ = decode(q[:, :, 50:51], k[:, :, :51], v[:, :, :51], state)
    spoilt = torch.ones(k.shape[:3], dtype=torch.bool)
    spoilt[:, :, 48:] = False
    for head in range(k.shape[1]):
        for block in state.blocks[0, head].tolist():
            spoilt[0, head, block * BLOCK : (block + 1) * BLOCK] = False
    k, v = (x.masked_fill(spoilt[..., None], torch.nan) for x in (k, v))
    output, _ = decode(q[:, :, 50:51], k[:, :, :51], v[:, :, :51], state)
    assert torch.equal(output, clean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_keys_that_are_made_anew_may_be_rounded_otherwise(draw, dtype):
    q, k, v = (x.detach() for x in draw(LENGTH, batch=2, dtype=dtype))
    state = start_decoding(q[:, :, :50], k[:, :, :50], v[:, :, :50], options_of())
    again = k[:, :, :51] * (1 + torch.finfo(dtype).eps)
    assert not torch.equal(again, k[:, :, :51])
    decode(q[:, :, 50:51], again, v[:, :, :51], state)
    other = k[:, :, :51].clone()
    other[1, 1, 49] *= 1.1
    with pytest.raises(ValueError, match="does not continue the row of 50 tokens"):
        decode(q[:, :, 50:51], other, v[:, :, :51], state)


def test_the_choice_of_a_chunk_is_refused_for_decoding(draw):
    with pytest.raises(ValueError, match="needs selection=\"causal\", not 'chunk'"):
        start_decoding(*draw(9), SpanOptions(CHUNK, BLOCK, 2))


@pytest.mark.parametrize(
    ("rows", "tokens"),
    [([0, 1], slice(50)), ([0, 1], slice(52)), ([1, 0], slice(51)), ([0, 1], slice(1, 52)), ([0], slice(51))],
    ids=["a token missing", "a token too many", "rows reordered", "another row", "a row less"],
)
def test_a_cache_that_does_not_continue_the_row_is_refused(draw, rows, tokens):
    q, k, v = (x.detach() for x in draw(LENGTH, batch=2))
    state = start_decoding(q[:, :, :50], k[:, :, :50], v[:, :, :50], options_of())
    with pytest.raises(ValueError, match="does not continue the row of 50 tokens"):
        decode(q[rows, :, 50:51], k[rows][:, :, tokens], v[rows][:, :, tokens], state)
