"""What a layer asks for beyond causality is refused: without it the model would be another one."""

import pytest
import torch

from se_model.attach import attach, attention_layers, detach
from se_model.hylora.kinds import Kind, parts
from tests.se_model.architectures.beyond import BEYOND, WINDOWS, beyond_causal
from tests.se_model.architectures.probes import (
    EVERYTHING,
    LENGTH,
    RIGHT,
    SPAN,
    calling,
    logits,
    random_tokens,
)
from tests.tolerances import EXACT, F32, within

LATENT = ["kimi_linear", "bailing_hybrid"]


@pytest.mark.parametrize("window", [4, LENGTH, 10 * LENGTH])
@pytest.mark.parametrize("name", WINDOWS)
def test_a_sliding_window_is_refused_however_wide(name: str, window: int) -> None:
    answer = calling(attach(beyond_causal(name, **{WINDOWS[name]: window}), SPAN))
    assert any(word in answer for word in ("sliding window", "sliding_window", "softcap"))


# recurrent_gemma keeps its cache inside its layers.
@pytest.mark.parametrize("name", [name for name in WINDOWS if name != "recurrent_gemma"])
def test_new_tokens_after_a_sliding_cache_are_refused(name: str) -> None:
    model, tokens = beyond_causal(name), random_tokens(1, LENGTH)
    with torch.no_grad():
        cache = model(input_ids=tokens, use_cache=True).past_key_values
    assert calling(attach(model, SPAN), past_key_values=cache) != RIGHT


@pytest.mark.parametrize("name", BEYOND)
def test_detaching_gives_back_what_was_refused(name: str) -> None:
    model, tokens = beyond_causal(name), random_tokens(1, LENGTH)
    before = logits(model, tokens)
    assert calling(attach(model, SPAN)) != RIGHT
    torch.testing.assert_close(logits(detach(model), tokens), before, **EXACT)


@pytest.mark.parametrize("name", LATENT)
def test_latent_attention_is_right_where_values_are_as_wide_as_queries(name: str) -> None:
    model, tokens = beyond_causal(name, qk_nope_head_dim=4), random_tokens(2, LENGTH)
    before = logits(model, tokens)
    torch.testing.assert_close(logits(attach(model, EVERYTHING), tokens), before, **within(F32))
    assert "queries of 12 and values of 8" in calling(attach(beyond_causal(name), SPAN))


@pytest.mark.parametrize("name", LATENT)
def test_a_linear_layer_that_is_named_self_attn_is_no_attention(name: str) -> None:
    model = beyond_causal(name)
    assert model.get_submodule("model.layers.0.self_attn") is not None
    assert [layer for layer, _ in attention_layers(model)] == ["model.layers.1.self_attn"]
    projections = {part.name for part in parts(model) if part.kind is Kind.ATTENTION}
    assert projections >= {f"model.layers.1.self_attn.{own}" for own in ("kv_a_proj_with_mqa", "o_proj")}
    assert not any(part.startswith("model.layers.0") for part in projections)
