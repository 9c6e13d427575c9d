"""Layers with a sliding window stay as they are while the others of their model are attached to."""

import copy
import itertools
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from se_model.attach import attach, attention_layers, check_parallel, detach, layer_exchanges, left_layers
from se_model.baselines import FullConfig
from se_model.loss import causal_lm_loss, packed_position_ids
from se_model.parallel.formula import Share
from se_model.recurrence.decoders import refuse_without_shards
from tests.se_model.architectures.beyond import SOME_WINDOWS, beyond_causal
from tests.se_model.architectures.probes import (
    EVERYTHING,
    LENGTH,
    SPAN,
    calling,
    logits,
    random_tokens,
)
from tests.tolerances import EXACT, F32, F32_SHORT, within

BOUNDS = (0, 1, 12, LENGTH)
# Gemma 2 has soft caps, and so no sdpa in transformers.
MODELS = [
    (name, implementation)
    for name, implementation in itertools.product(SOME_WINDOWS, ("eager", "sdpa"))
    if not (name.startswith("gemma2") and implementation == "sdpa")
]
every_model = pytest.mark.parametrize(("name", "implementation"), MODELS)


def taken(model: nn.Module) -> list[str]:
    return [name for name, _ in attention_layers(model) if name not in left_layers(model)]


@pytest.mark.parametrize("name", SOME_WINDOWS)
def test_they_are_given_by_name_with_the_reason_and_logged_in_one_line(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = beyond_causal(name)
    windows = [1] if name == "qwen3" else [0, 2]
    names = [f"model.layers.{layer}.self_attn" for layer in windows]
    with caplog.at_level(logging.INFO, logger="se_model.attach.attachment"):
        attach(model, SPAN)
    assert left_layers(model) == dict.fromkeys(names, "a sliding window of 4 tokens")
    assert len(taken(model)) == 1
    (record,) = caplog.records
    assert all(f"{layer} (a sliding window of 4 tokens)" in record.message for layer in names)


@every_model
def test_with_every_block_retrieved_logits_are_those_of_the_model(name: str, implementation: str) -> None:
    model, tokens = beyond_causal(name, implementation), random_tokens(2, LENGTH)
    before = logits(model, tokens)
    torch.testing.assert_close(logits(attach(model, EVERYTHING), tokens), before, **within(F32))
    assert (logits(attach(model, SPAN), tokens) - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(detach(model), tokens), before, **EXACT)
    assert all(layer.config is model.config for _, layer in attention_layers(model))


@every_model
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name: str, implementation: str, side: str) -> None:
    model, tokens = beyond_causal(name, implementation), random_tokens(2, LENGTH)
    mask = torch.ones_like(tokens)
    mask[0, slice(0, 9) if side == "left" else slice(LENGTH - 9, LENGTH)] = 0
    before = logits(model, tokens * mask, attention_mask=mask)
    after = logits(attach(model, EVERYTHING), tokens * mask, attention_mask=mask)
    torch.testing.assert_close(after[mask.bool()], before[mask.bool()], **within(F32))
    alone = logits(attach(model, SPAN), tokens[:1, mask[0].bool()])
    padded = logits(model, tokens * mask, attention_mask=mask)[:1, mask[0].bool()]
    torch.testing.assert_close(padded, alone, **within(F32))


@every_model
@pytest.mark.parametrize("told_by", [("cu_seqlens", "position_ids"), ("cu_seqlens",), ("position_ids",)])
def test_packed_documents_equal_their_own_rows(
    name: str, implementation: str, told_by: tuple[str, ...]
) -> None:
    model, tokens = attach(beyond_causal(name, implementation), SPAN), random_tokens(1, LENGTH)
    cu_seqlens = torch.tensor(BOUNDS)
    known = {"cu_seqlens": cu_seqlens, "position_ids": packed_position_ids(cu_seqlens)}
    packed = logits(model, tokens, **{argument: known[argument] for argument in told_by})
    for start, end in itertools.pairwise(BOUNDS):
        alone = logits(model, tokens[:, start:end])
        torch.testing.assert_close(packed[:, start:end], alone, **within(F32))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_packed_documents_that_windows_are_not_told_of_are_refused(implementation: str) -> None:
    """transformers looks for documents in positions only where there is neither a mask nor a cache."""
    model, tokens = attach(beyond_causal("gemma3_text", implementation), SPAN), random_tokens(1, LENGTH)
    cu_seqlens, mask = torch.tensor(BOUNDS), torch.ones_like(tokens)
    refusal = "sliding window of 4 tokens stay as they are.*not told where packed documents begin"
    with pytest.raises(ValueError, match=refusal):
        model(input_ids=tokens, cu_seqlens=cu_seqlens)
    with pytest.raises(ValueError, match=refusal):
        model(input_ids=tokens, cu_seqlens=cu_seqlens, attention_mask=mask, use_cache=False)
    # One document is no packed row.
    model(input_ids=tokens, cu_seqlens=torch.tensor([0, LENGTH]))


def test_packed_documents_are_refused_on_an_implementation_whose_masks_do_not_tell_them() -> None:
    model = beyond_causal("gemma3_text")
    model.config._attn_implementation = "flash_attention_2"
    attach(model, SPAN)
    answer = calling(model, cu_seqlens=torch.tensor(BOUNDS))
    assert "on attention 'flash_attention_2', and are not told where packed documents begin" in answer


@every_model
def test_generation_goes_on_from_caches_of_windows(name: str, implementation: str) -> None:
    model, prompts = beyond_causal(name, implementation), random_tokens(2, LENGTH)
    mask = torch.ones_like(prompts)
    mask[0, :9] = 0
    arguments = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    arguments |= {"attention_mask": mask, "output_logits": True, "return_dict_in_generate": True}
    expected = model.generate(prompts * mask, **arguments)
    found = attach(model, EVERYTHING).generate(prompts * mask, **arguments)
    assert found.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), **within(F32))


@pytest.mark.parametrize("name", SOME_WINDOWS)
def test_several_tokens_after_a_cache_equal_the_whole_row(name: str) -> None:
    model, tokens = beyond_causal(name), random_tokens(1, LENGTH)
    expected = logits(model, tokens)
    attach(model, EVERYTHING)
    with torch.no_grad():
        cache, found = None, []
        for start, end in itertools.pairwise((0, 7, 12, 13, LENGTH)):
            step = model(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, **within(F32))


def gradients(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    causal_lm_loss(model.train(), tokens)[0].backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@every_model
def test_gradients_are_those_of_the_model_and_checkpointing_repeats_them(
    name: str, implementation: str
) -> None:
    model, tokens = beyond_causal(name, implementation), random_tokens(2, LENGTH)
    expected = gradients(model, tokens)
    found = gradients(attach(model, EVERYTHING), tokens)
    model.gradient_checkpointing_enable()
    repeated = gradients(model, tokens)
    for parameter, gradient in expected.items():
        assert gradient.any(), parameter
        torch.testing.assert_close(found[parameter], gradient, **within(F32), msg=parameter)
        torch.testing.assert_close(repeated[parameter], found[parameter], **within(F32_SHORT), msg=parameter)


def test_attaching_again_and_copying_leave_them_as_they_were() -> None:
    model, tokens = beyond_causal("gemma3_text", "sdpa"), random_tokens(1, LENGTH)
    before = logits(model, tokens)
    attach(attach(model, SPAN), EVERYTHING)
    other = copy.deepcopy(model)
    torch.testing.assert_close(logits(other, tokens), before, **within(F32))
    torch.testing.assert_close(logits(detach(other), tokens), before, **EXACT)
    torch.testing.assert_close(logits(model, tokens), before, **within(F32))
    windows = [layer for name, layer in attention_layers(model) if name in left_layers(model)]
    assert {layer.config._attn_implementation for layer in windows} == {"sdpa"}


def test_a_model_built_from_the_configuration_of_an_attached_one_is_attached_to_as_well() -> None:
    model, tokens = beyond_causal("gemma3_text", "sdpa"), random_tokens(1, LENGTH)
    before = logits(model, tokens)
    attach(model, SPAN)
    other = AutoModelForCausalLM.from_config(model.config).eval()
    other.load_state_dict(model.state_dict())
    assert other.config is model.config
    torch.testing.assert_close(logits(attach(other, EVERYTHING), tokens), before, **within(F32))
    torch.testing.assert_close(logits(detach(other), tokens), before, **EXACT)


def test_a_saved_model_does_not_tell_that_it_was_attached(tmp_path: Path) -> None:
    model, tokens = beyond_causal("gemma3_text"), random_tokens(1, LENGTH)
    before = logits(model, tokens)
    attach(model, SPAN).save_pretrained(tmp_path)
    assert "expansion_span" not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(logits(again, tokens), before, **EXACT)


def test_a_window_that_attach_does_not_see_is_refused() -> None:
    """Gemma 3's layers take the mask that goes with their place, whatever they say of themselves."""
    model = beyond_causal("gemma3_text")
    for _, layer in attention_layers(model):
        layer.sliding_window = None
    answer = calling(attach(model, SPAN))
    assert "Gemma3Attention is given the mask of a sliding window of 4 tokens" in answer


def test_a_static_cache_is_refused() -> None:
    model = attach(beyond_causal("gemma3_text"), SPAN)
    with pytest.raises(ValueError, match="static and sliding caches are not supported"):
        model.generate(
            random_tokens(1, LENGTH), max_new_tokens=2, cache_implementation="static", do_sample=False
        )


@pytest.mark.parametrize("name", SOME_WINDOWS)
def test_a_row_over_several_ranks_is_refused_by_the_names_of_the_layers(name: str) -> None:
    model = attach(beyond_causal(name), FullConfig())
    names = [layer.removeprefix("model.") for layer in left_layers(model)]
    own = "sees? (its|their) own rank's tokens only"
    with pytest.raises(ValueError, match=rf"leaves as they are.*{own}.*{names[0]} \(a sliding window of 4"):
        check_parallel(model)
    with pytest.raises(ValueError, match=rf"{own}.*{names[0]}"):
        list(layer_exchanges(model, Share(2, 1, 16, 4)))
    with pytest.raises(ValueError, match=rf"{len(names)} layers that keep an attention.*{own}.*{names[-1]}"):
        refuse_without_shards(model.model)
    # A call is refused before the first layer runs; the shard is not looked at.
    assert "layers that keep an attention of their own" in calling(model, shard=object())
