"""What a layer asks for beyond causality is computed or refused: without it the model would be another."""

import pytest
import torch

from se_model.attach import attach, attached, attention_layers
from se_model.hylora.kinds import Kind, parts
from tests.se_model.architectures.beyond import ALL_WINDOWS, LATENT, beyond_causal
from tests.se_model.architectures.probes import LENGTH, SPAN, logits, random_tokens
from tests.tolerances import EXACT


@pytest.mark.parametrize("window", [4, LENGTH, 10 * LENGTH])
@pytest.mark.parametrize("name", ALL_WINDOWS)
def test_a_model_whose_every_layer_has_a_window_is_refused_however_wide(name: str, window: int) -> None:
    key = ALL_WINDOWS[name]
    model = beyond_causal(name, **{key: window})
    with pytest.raises(
        ValueError, match=rf"every attention layer of .* has a sliding window \({key}: {window} "
    ):
        attach(model, SPAN)
    assert attached(model) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma2", "soft cap of its logits, attn_logit_softcapping: 50.0"),
        ("gpt_oss", "attention sinks, the parameter sinks"),
    ],
)
def test_what_a_layer_without_a_window_asks_for_is_refused_by_its_name(name: str, reason: str) -> None:
    model, tokens = beyond_causal(name), random_tokens(1, LENGTH)
    before = logits(model, tokens)
    with pytest.raises(ValueError, match=rf"compute.*: model\.layers\.1\.self_attn \(.*{reason}\)$"):
        attach(model, SPAN)
    assert attached(model) is None
    torch.testing.assert_close(logits(model, tokens), before, **EXACT)


@pytest.mark.parametrize("name", LATENT)
def test_a_linear_layer_that_is_named_self_attn_is_no_attention(name: str) -> None:
    model = beyond_causal(name)
    assert model.get_submodule("model.layers.0.self_attn") is not None
    assert [layer for layer, _ in attention_layers(model)] == ["model.layers.1.self_attn"]
    projections = {part.name for part in parts(model) if part.kind is Kind.ATTENTION}
    assert projections >= {f"model.layers.1.self_attn.{own}" for own in ("kv_a_proj_with_mqa", "o_proj")}
    assert not any(part.startswith("model.layers.0") for part in projections)
