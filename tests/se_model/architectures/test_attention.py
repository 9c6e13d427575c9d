"""In every architecture an attached attention is right, or it is refused: never silently wrong."""

import copy

import pytest
import torch
from torch import Tensor, nn

from se_model.attach import attach, attention_layers, detach, set_step
from se_model.loss import causal_lm_loss
from se_model.span import SpanConfig
from tests.se_model.architectures.probes import (
    EVERYTHING,
    LENGTH,
    RIGHT,
    SPAN,
    calling,
    logits,
    packing,
    padding,
    random_tokens,
)
from tests.se_model.tiny_models import ARCHITECTURES, tiny_model
from tests.tolerances import F32, F32_SHORT, within

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@every_architecture
def test_with_every_block_retrieved_logits_are_those_of_full_attention(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(2, LENGTH)
    before = logits(model, tokens)
    torch.testing.assert_close(logits(attach(model, EVERYTHING), tokens), before, **within(F32))
    assert (logits(attach(model, SPAN), tokens) - before).abs().max() > 1e-2
    assert torch.equal(logits(detach(model), tokens), before)


@every_architecture
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    model = attach(tiny_model(name), SpanConfig(chunk_sizes=(4, 8), block_size=4, top_k=1)).train()
    tokens = random_tokens(1, LENGTH)

    def gradients() -> dict[str, Tensor | None]:
        set_step(model, 3)
        model.zero_grad()
        causal_lm_loss(model, tokens)[0].backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    expected = gradients()
    reached = [layer for layer, _ in attention_layers(model) if _has_gradient(model.get_submodule(layer))]
    assert reached == [layer for layer, _ in attention_layers(model)]
    model.gradient_checkpointing_enable()
    for parameter, gradient in gradients().items():
        if expected[parameter] is None:  # an expert that no token was sent to
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, expected[parameter], **within(F32_SHORT), msg=parameter)


def _has_gradient(layer: nn.Module) -> bool:
    return any(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())


@every_architecture
@pytest.mark.parametrize("with_positions", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name: str, side: str, with_positions: bool) -> None:
    assert padding(name, side, with_positions=with_positions) == RIGHT


@every_architecture
def test_decoding_after_left_padding_needs_no_positions(name: str) -> None:
    """The prompt is shorter than a chunk, and there span attention is full attention too."""
    model, tokens, padding_tokens = tiny_model(name), random_tokens(1, 12), 3
    expected = logits(model, tokens)
    attach(model, SPAN)
    padded = nn.functional.pad(tokens, (padding_tokens, 0))
    mask = (torch.arange(padded.shape[1]) >= padding_tokens).long()[None]
    cache, start = None, 0
    with torch.no_grad():
        for end in range(padding_tokens + 5, padded.shape[1] + 1):
            arguments = {"attention_mask": mask[:, :end], "past_key_values": cache, "use_cache": True}
            step = model(input_ids=padded[:, start:end], **arguments)
            torch.testing.assert_close(
                step.logits[:, -1], expected[:, end - padding_tokens - 1], **within(F32)
            )
            cache, start = step.past_key_values, end


@every_architecture
@pytest.mark.parametrize("told_by", [("cu_seqlens", "position_ids"), ("cu_seqlens",), ("position_ids",)])
def test_packed_documents_equal_their_own_rows(name: str, told_by: tuple[str, ...]) -> None:
    answer = packing(name, told_by)
    if name == "mamba2_hybrid" and told_by == ("position_ids",):
        assert "position_ids are not consecutive: give cu_seqlens" in answer
    else:
        assert answer == RIGHT


@every_architecture
def test_masks_over_pairs_are_refused(name: str) -> None:
    model = attach(tiny_model(name), SPAN)
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    for form in (mask, mask.float(), {"full_attention": mask}):
        assert "masks over pairs are refused" in calling(model, attention_mask=form)


@every_architecture
def test_documents_told_by_positions_beside_a_mask_are_refused(name: str) -> None:
    """transformers does not look for documents where there is a mask, and would run across them."""
    model = attach(tiny_model(name), SPAN)
    positions = torch.cat([torch.arange(12), torch.arange(LENGTH - 12)])[None]
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    assert "packed documents" in calling(model, position_ids=positions, attention_mask=mask)


def test_positions_that_contradict_the_documents_are_refused() -> None:
    model = attach(tiny_model("llama"), SPAN)
    arguments = {"cu_seqlens": torch.tensor([0, 12, LENGTH]), "position_ids": torch.arange(LENGTH)[None]}
    assert "position_ids must count from 0 in every document" in calling(model, **arguments)


def test_layers_that_are_not_told_of_packed_documents_refuse() -> None:
    """Without recurrent layers granitemoehybrid could pack, but gives its mask function no positions."""
    model = attach(tiny_model("granitemoehybrid-attention"), SPAN)
    positions = torch.cat([torch.arange(12), torch.arange(LENGTH - 12)])[None]
    assert "GraniteMoeHybridAttention is not told where" in calling(model, position_ids=positions)
    assert calling(model) == RIGHT


def test_detaching_stops_looking_at_what_the_model_is_called_with() -> None:
    model = detach(attach(attach(tiny_model("llama"), SPAN), SPAN))
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    assert calling(model, attention_mask=mask) == RIGHT


def test_a_copy_looks_for_itself() -> None:
    model = attach(tiny_model("llama"), SPAN)
    other = detach(copy.deepcopy(model))
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    assert calling(other, attention_mask=mask) == RIGHT
    assert "masks over pairs are refused" in calling(model, attention_mask=mask)
