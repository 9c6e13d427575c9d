"""The bytes of a cache are counted before there is one, and joined caches are that of a padded batch."""

import pytest
import torch

from pipelines.evaluate.language_model.cache import cache_bytes, join, kept_bytes, known_cache, select
from pipelines.evaluate.language_model.in_place import InPlace, reserve
from se_model import SpanConfig, attach
from tests.pipelines.evaluate.language_model.tiny import random_rows
from tests.se_model.architectures.beyond import beyond_causal
from tests.se_model.tiny_models import ARCHITECTURES, tiny_model
from tests.tolerances import F32, within

WINDOWED = ["gemma3_text", "mistral", "gpt_oss"]


@torch.no_grad()
def cache_of(model, *rows):
    decoder = getattr(model, model.base_model_prefix)
    return known_cache(decoder(input_ids=torch.tensor(rows), use_cache=True), model)


def model_named(name):
    return beyond_causal(name) if name in WINDOWED[1:] or name not in ARCHITECTURES else tiny_model(name)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *WINDOWED])
def test_the_bytes_counted_are_those_of_the_real_cache(name):
    model = model_named(name)
    for dtype, tokens in ((torch.float32, 1), (torch.bfloat16, 3), (torch.float32, 13)):
        cache = cache_of(model.to(dtype), *random_rows(tokens, tokens))
        assert cache_bytes(model, tokens, rows=2) == kept_bytes(cache) > 0


def test_an_attached_model_keeps_what_it_keeps_without():
    model = tiny_model("mamba2_hybrid")
    expected = cache_bytes(model, 100)
    assert cache_bytes(attach(model, SpanConfig(chunk_sizes=8, block_size=4, top_k=1)), 100) == expected


def test_joined_caches_have_states_as_they_were_and_keys_behind_padding():
    model, (long, short) = tiny_model("mamba2_hybrid"), random_rows(9, 4)
    joined = join([cache_of(model, long, long), cache_of(model, short)])
    assert kept_bytes(joined) == cache_bytes(model, 9, rows=3)
    select(joined, torch.tensor([2, 0]))
    for layer, first, last in zip(
        joined.layers, cache_of(model, short).layers, cache_of(model, long).layers, strict=True
    ):
        for place, alone in enumerate((first, last)):
            torch.testing.assert_close(layer.conv_states[0][place], alone.conv_states[0][0], **within(F32))
            if alone.recurrent_states[0] is not None:
                state = layer.recurrent_states[0][place]
                torch.testing.assert_close(state, alone.recurrent_states[0][0], **within(F32))
            if getattr(alone, "keys", None) is not None:
                tokens = alone.keys.shape[2]
                torch.testing.assert_close(layer.keys[place, :, -tokens:], alone.keys[0], **within(F32))
                assert not layer.keys[place, :, :-tokens].any()


@pytest.mark.parametrize("name", ["mamba2_hybrid", "falcon_h1", "gemma3_text"])
def test_a_cache_with_room_takes_tokens_where_it_is_and_says_what_one_without_says(name):
    model, (row, more) = model_named(name), random_rows(9, 4)
    decoder = getattr(model, model.base_model_prefix)
    caches = [cache_of(model, row, row[::-1]) for _ in range(2)]
    reserve(caches[1], 13)
    roomy = [layer for layer in caches[1].layers if isinstance(layer, InPlace)]
    places = [layer.keys.data_ptr() for layer in roomy]
    assert places
    for step, token in enumerate(more):
        if step == 2:
            for cache in caches:
                select(cache, torch.tensor([1]))
            places = [layer.keys.data_ptr() for layer in roomy]
        tokens = torch.full((1 if step >= 2 else 2, 1), token)
        expected, found = (
            decoder(input_ids=tokens, past_key_values=cache).last_hidden_state.detach() for cache in caches
        )
        assert torch.equal(found, expected)
    assert [layer.keys.data_ptr() for layer in roomy] == places
    assert kept_bytes(caches[1]) == kept_bytes(caches[0])
    with pytest.raises(RuntimeError):
        decoder(input_ids=torch.tensor([[1]]), past_key_values=caches[1])


def test_rows_of_a_cache_with_room_are_reordered_with_what_comes_after():
    cache = cache_of(tiny_model("llama"), *random_rows(5, 5))
    reserve(cache, 7)
    (layer, *_), token = cache.layers, torch.arange(2.0)[:, None, None, None]
    first = layer.keys.clone()
    layer.update(*[token.expand_as(layer.keys[:, :, :1])] * 2)
    layer.reorder_cache(torch.tensor([1, 0]))
    layer.update(*[token.expand_as(layer.keys[:, :, :1])] * 2)
    assert torch.equal(layer.keys[:, :, :5], first.flip(0))
    assert layer.keys[:, 0, 5:, 0].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="2 rows, and 1 are added to"):
        layer.update(*[token[:1].expand_as(layer.keys[:1, :, :1])] * 2)


def test_a_cache_that_was_joined_holds_no_memory_of_its_parts():
    parts = [
        cache_of(tiny_model("mamba2_hybrid"), *random_rows(9, 9, 9)),
        cache_of(tiny_model("mamba2_hybrid"), *random_rows(4)),
    ]
    join(parts)
    held = [getattr(layer, "keys", None) for layer in parts[1].layers]
    assert all(keys is None or keys.untyped_storage().nbytes() == 0 for keys in held)
