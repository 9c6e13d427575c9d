"""What a layer asks for beyond causality is computed or refused: without it the model would be another."""

import pytest
import torch

from se_model.attach import attach, attached, attention_layers, detach, layer_exchanges
from se_model.baselines import FullConfig
from se_model.hylora.kinds import Kind, parts
from se_model.loss import causal_lm_loss
from se_model.parallel.formula import Heads, Share, full_attention
from se_model.span import SpanConfig
from tests.se_model.architectures.beyond import ALL_WINDOWS, LATENT, beyond_causal
from tests.se_model.architectures.probes import EVERYTHING, LENGTH, SPAN, calling, logits, random_tokens
from tests.tolerances import EXACT, F32, F32_MODEL_GRADIENTS, within

every_latent = pytest.mark.parametrize("name", LATENT)


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


@every_latent
@pytest.mark.parametrize("widths", [{}, {"qk_nope_head_dim": 4}, {"v_head_dim": 15}], ids=str)
def test_latent_attention_is_taken_whatever_the_width_of_its_values(
    name: str, widths: dict[str, int]
) -> None:
    model, tokens = beyond_causal(name, "sdpa", **widths), random_tokens(2, LENGTH)
    before = logits(model, tokens)
    torch.testing.assert_close(logits(attach(model, EVERYTHING), tokens), before, **within(F32))
    assert (logits(attach(model, SPAN), tokens) - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(detach(model), tokens), before, **EXACT)


@every_latent
def test_gradients_of_latent_attention_are_those_of_the_model(name: str) -> None:
    model, tokens = beyond_causal(name).train(), random_tokens(2, LENGTH)

    def gradients() -> dict[str, torch.Tensor | None]:
        model.zero_grad()
        causal_lm_loss(model, tokens)[0].backward()
        return {parameter: value.grad for parameter, value in model.named_parameters()}

    expected = gradients()
    assert expected["model.layers.1.self_attn.kv_b_proj.weight"].any()
    attach(model, EVERYTHING)
    for parameter, gradient in gradients().items():
        if expected[parameter] is None:  # an expert that no token was sent to
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, expected[parameter], **F32_MODEL_GRADIENTS, msg=parameter)


@every_latent
@pytest.mark.parametrize("decoding", ["full", "span"])
def test_new_tokens_of_latent_attention_have_what_the_whole_row_gives_them(name: str, decoding: str) -> None:
    """Full attention sees all, so all is retrieved; decoding="span" has that where little is, too."""
    few = {"block_size": 4, "top_k": 1} if decoding == "span" else {"block_size": 1, "top_k": LENGTH}
    config = SpanConfig(chunk_sizes=8, **few, selection="causal", decoding=decoding)
    model, tokens = attach(beyond_causal(name), config), random_tokens(2, LENGTH)
    expected = logits(model, tokens)
    with torch.no_grad():
        step = model(input_ids=tokens[:, :13], use_cache=True)
        found = [step.logits]
        for position in range(13, LENGTH):
            new = tokens[:, position : position + 1]
            step = model(input_ids=new, past_key_values=step.past_key_values, use_cache=True)
            found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, **within(F32))


@every_latent
def test_a_padded_row_beside_latent_attention_has_an_output_of_the_values_width(name: str) -> None:
    model, tokens = attach(beyond_causal(name), SPAN), random_tokens(2, LENGTH)
    mask = torch.ones_like(tokens)
    mask[0, LENGTH - 9 :] = 0
    padded = logits(model, tokens * mask, attention_mask=mask)
    torch.testing.assert_close(
        padded[:1, : LENGTH - 9], logits(model, tokens[:1, : LENGTH - 9]), **within(F32)
    )


@every_latent
def test_the_papers_summary_of_latent_attention_is_refused(name: str) -> None:
    paper = SpanConfig(chunk_sizes=8, block_size=4, top_k=1, rule="paper")
    answer = calling(attach(beyond_causal(name), paper))
    assert 'summary="attention" has the 8 dimensions of values' in answer
    assert 'queries of 12: use a summary of keys, "mean_key"' in answer


@every_latent
def test_latent_attention_exchanges_a_key_and_a_value_of_every_query_head(name: str) -> None:
    share = Share(4, rows=1, tokens=64, itemsize=4)
    (attention,) = (
        each
        for each in layer_exchanges(attach(beyond_causal(name), FullConfig()), share)
        if each.layer == "model.layers.1.self_attn"
    )
    assert attention.volume == full_attention(share, Heads(4, 4, size=12, value_size=8))


@every_latent
def test_a_linear_layer_that_is_named_self_attn_is_no_attention(name: str) -> None:
    model = beyond_causal(name)
    assert model.get_submodule("model.layers.0.self_attn") is not None
    assert [layer for layer, _ in attention_layers(model)] == ["model.layers.1.self_attn"]
    projections = {part.name for part in parts(model) if part.kind is Kind.ATTENTION}
    assert projections >= {f"model.layers.1.self_attn.{own}" for own in ("kv_a_proj_with_mqa", "o_proj")}
    assert not any(part.startswith("model.layers.0") for part in projections)
