"""What an attached attention would compute wrongly, it refuses, and says what to do."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
from transformers.models.mistral.configuration_mistral import MistralConfig

from se_model.attach import attach, attention_layers, detach, set_step
from se_model.span import SpanConfig
from tests.se_model.sizes import SIZES

LENGTH = 12
SPAN = SpanConfig(chunk_sizes=16, block_size=4, top_k=2)
TOKENS = torch.arange(3, 3 + LENGTH)[None]


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def refused(model: nn.Module, message: str, **arguments: object) -> None:
    with pytest.raises(ValueError, match=message):
        model(input_ids=TOKENS, use_cache=False, **arguments)


def test_a_mask_over_pairs_is_refused() -> None:
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    refused(attach(llama(), SPAN), "masks over pairs are refused", attention_mask=mask)


def test_padding_between_tokens_is_refused() -> None:
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    mask[0, 5] = 0
    refused(attach(llama(), SPAN), "padding between tokens", attention_mask=mask)


def test_padding_in_a_packed_row_is_refused() -> None:
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    mask[0, 11] = 0
    arguments = {"attention_mask": mask, "cu_seqlens": torch.tensor([0, 5, LENGTH])}
    refused(attach(llama(), SPAN), "leave the padding out", **arguments)


def test_a_packed_row_after_a_cache_is_refused() -> None:
    model = attach(llama(), SPAN)
    cache = model(input_ids=TOKENS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot continue a cache"):
        model(input_ids=TOKENS, past_key_values=cache, cu_seqlens=torch.tensor([0, 5, LENGTH]))


def test_attention_dropout_is_refused() -> None:
    model = llama().train()
    for _, layer in attention_layers(model):
        layer.attention_dropout = 0.1
    refused(attach(model, SPAN), "attention dropout 0.1")


def test_a_soft_cap_that_comes_after_attaching_is_refused() -> None:
    config = Gemma2Config(
        **SIZES, head_dim=8, layer_types=["full_attention"] * 2, attn_logit_softcapping=None
    )
    model = attach(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval(), SPAN)
    # The mask that Gemma 2 makes for layers with a window is read by none.
    model(input_ids=TOKENS, use_cache=False)
    model.model.layers[1].self_attn.attn_logit_softcapping = 50.0
    refused(model, "Gemma2Attention asks for softcap=50.0")


@pytest.mark.parametrize("window", [LENGTH - 1, LENGTH])
def test_a_window_that_comes_after_attaching_is_refused(window: int) -> None:
    model = AutoModelForCausalLM.from_config(MistralConfig(**SIZES, sliding_window=None)).eval()
    attach(model, SPAN).config.sliding_window = window
    refused(model, f"MistralAttention asks for sliding_window={window}")


def test_a_static_cache_is_refused() -> None:
    model = attach(llama(), SPAN)
    with pytest.raises(ValueError, match="static and sliding caches are not supported"):
        model.generate(TOKENS, max_new_tokens=2, cache_implementation="static", do_sample=False)


def test_a_model_that_shares_its_configuration_object_is_refused() -> None:
    model = attach(llama(), SPAN)
    other = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    other.model.layers[0].self_attn.config = model.config
    refused(other, "was never given to attach")


def test_a_model_without_attention_is_refused() -> None:
    config = Mamba2Config(
        vocab_size=64, hidden_size=32, num_heads=4, head_dim=16, num_hidden_layers=1, n_groups=1
    )
    with pytest.raises(ValueError, match="no layer of Mamba2ForCausalLM looks its attention up"):
        attach(AutoModelForCausalLM.from_config(config), SPAN)


def test_attention_that_is_not_causal_is_refused() -> None:
    config = GPT2Config(n_layer=1, n_embd=32, n_head=4, vocab_size=64, add_cross_attention=True)
    with pytest.raises(ValueError, match=r"transformer.h.0.crossattention is not causal"):
        attach(AutoModelForCausalLM.from_config(config), SPAN)


def test_detaching_or_stepping_what_is_not_attached_is_refused() -> None:
    for call in (detach, lambda model: set_step(model, 1)):
        with pytest.raises(ValueError, match="nothing is attached to LlamaForCausalLM"):
            call(llama())
