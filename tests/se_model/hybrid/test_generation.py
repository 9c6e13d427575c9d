"""Decoding with a cache equals the full forward token by token; padding is as if it were not there."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from tests.tolerances import F64

VARIANTS = [{}, {"attention_conv_kernel": 0}, {"n_groups": 1, "num_key_value_heads": 4}]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
@torch.no_grad()
def test_cache_equals_full_forward_token_by_token(small_model, tokens, overrides, implementation):
    model, row = small_model(**overrides), tokens(2, 40)
    model.set_attn_implementation(implementation)
    expected = model(row).logits
    cache = DynamicCache(config=model.config)
    for t in range(40):
        step = model(row[:, t : t + 1], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(step, expected[:, t : t + 1], rtol=0, atol=F64)


@pytest.mark.parametrize("pieces", [[1, 39], [2, 38], [17, 1, 22], [3, 16, 16, 5]], ids=str)
@torch.no_grad()
def test_cache_may_be_filled_in_pieces_of_any_length(small_model, tokens, pieces):
    model, row = small_model(), tokens(2, 40)
    expected = model(row).logits
    cache, parts = None, []
    for piece in row.split(pieces, dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=F64)


@pytest.mark.parametrize("length", [1, 2, 3, 16, 21])
def test_greedy_generation_equals_argmax_of_full_forwards(small_model, tokens, length):
    model, row = small_model(), tokens(2, length)
    generated = model.generate(row, max_new_tokens=12, do_sample=False)
    for _ in range(12):
        row = torch.cat([row, model(row).logits[:, -1:].argmax(-1)], dim=1)
    assert generated.tolist() == row.tolist()


def test_beam_search_reorders_every_state(small_model, tokens):
    model, row = small_model(), tokens(2, 9)
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3}
    with_cache = model.generate(row, **options)
    assert with_cache.tolist() == model.generate(row, use_cache=False, **options).tolist()


def test_a_cache_of_fixed_size_gives_the_same_tokens(small_model, tokens):
    model, options = small_model(), {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(tokens(2, 9), **options)
    static = model.generate(tokens(2, 9), cache_implementation="static", **options)
    assert static.tolist() == expected.tolist()


def left_padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_full((length - len(row),), 7), row]) for row in rows])
    mask = torch.stack([torch.arange(length) >= length - len(row) for row in rows]).long()
    return ids, mask


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_left_padded_rows_equal_rows_alone(small_model, tokens, implementation):
    model = small_model()
    model.set_attn_implementation(implementation)
    rows = [tokens(1, n, seed=n)[0] for n in (1, 5, 20, 33)]
    ids, mask = left_padded(rows)
    logits = model(ids, attention_mask=mask).logits
    for row, output in zip(rows, logits, strict=True):
        torch.testing.assert_close(output[-len(row) :], model(row[None]).logits[0], rtol=0, atol=F64)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_right_padded_rows_equal_rows_alone(small_model, tokens, implementation):
    model = small_model()
    model.set_attn_implementation(implementation)
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, 13:] = 0
    logits = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[0, :13], model(ids[:1, :13]).logits[0], rtol=0, atol=F64)
    torch.testing.assert_close(logits[1], model(ids[1:]).logits[0], rtol=0, atol=F64)


def test_generation_of_left_padded_rows_equals_rows_alone(small_model, tokens):
    model = small_model()
    rows = [tokens(1, n, seed=n)[0] for n in (1, 3, 20)]
    ids, mask = left_padded(rows)
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=7)
    for row, output in zip(rows, generated, strict=True):
        alone = model.generate(row[None], max_new_tokens=10, do_sample=False)
        assert output[-10:].tolist() == alone[0, -10:].tolist()


def test_generation_with_an_attached_attention_equals_its_own_step_by_step(small_model, tokens):
    from se_model.attach import attach
    from se_model.baselines import FullConfig

    model, row = small_model(), tokens(2, 15)
    expected = model.generate(row, max_new_tokens=8, do_sample=False)
    assert (
        attach(model, FullConfig()).generate(row, max_new_tokens=8, do_sample=False).tolist()
        == expected.tolist()
    )


@torch.no_grad()
def test_what_would_be_computed_wrongly_is_refused(small_model, tokens):
    model, ids = small_model(), tokens(1, 6)
    with pytest.raises(ValueError, match="has holes"):
        model(ids, attention_mask=torch.tensor([[1, 1, 0, 1, 1, 1]]))
    right = torch.tensor([[1, 1, 1, 1, 0, 0]])
    cache = model(ids, attention_mask=right, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="pad on the left"):
        model(ids[:, :1], attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0, 1]]), past_key_values=cache)
    with pytest.raises(ValueError, match=r"\[B, past \+ L\] = \[1, 7\]; got \[1, 1\]"):
        model(ids[:, :1], attention_mask=torch.ones(1, 1), past_key_values=cache)
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, past \+ L\]"):
        model(ids, attention_mask=torch.ones(1, 1, 6, 6))
    with pytest.raises(ValueError, match=r"DynamicCache\(config=model.config\)"):
        model(ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
