"""Loss, activation checkpointing, initialisation, dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from se_model.hybrid import Mamba2HybridForCausalLM
from tests.tolerances import F32_SHORT, F64_SHORT


def test_loss_is_cross_entropy_of_the_next_token_and_training_gives_no_logits(small_model, tokens):
    model, row = small_model(), tokens(2, 30)
    labels = row.clone()
    labels[0, 4:9] = -100
    evaluated = model(row, labels=labels)
    expected = F.cross_entropy(
        evaluated.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(evaluated.loss.double(), expected, rtol=F32_SHORT, atol=0)
    trained = model.train()(row, labels=labels)
    assert trained.logits is None
    assert trained.past_key_values is None
    torch.testing.assert_close(trained.loss, evaluated.loss, rtol=F32_SHORT, atol=0)
    summed = model(row, labels=labels, num_items_in_batch=1).loss
    torch.testing.assert_close(summed / 53, trained.loss, rtol=F32_SHORT, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 3, 20, 40]], ids=str)
def test_activation_checkpointing_gives_the_same_loss_and_gradients(
    small_model, tokens, cu_seqlens, reentrant
):
    row = tokens(1, 40)
    cu_seqlens = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    results = []
    for checkpointing in (False, True):
        model = small_model().train()
        calls = []
        model.backbone.layers[1].mixer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        loss = model(row, labels=row, cu_seqlens=cu_seqlens).loss
        loss.backward()
        assert len(calls) == 1 + checkpointing
        results.append([loss] + [parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=F64_SHORT)


def test_every_parameter_receives_a_gradient(small_model, tokens):
    model = small_model(torch.float32, num_hidden_layers=5, qkv_bias=True, mamba_proj_bias=True).train()
    row = tokens(2, 50)
    model(row, labels=row).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_initial_weights_follow_mamba_ssm(small_config):
    torch.manual_seed(0)
    config = small_config(hidden_size=192, num_hidden_layers=6, attn_layer_indices=[2, 5], mamba_head_dim=1)
    model = Mamba2HybridForCausalLM(config)
    for layer in model.backbone.layers:
        mixer = layer.mixer
        bound = 192**-0.5
        assert 0.95 * bound < mixer.in_proj.weight.abs().max() <= bound
        bound = mixer.out_proj.in_features**-0.5 / 6**0.5
        assert 0.95 * bound < mixer.out_proj.weight.abs().max() <= bound
        for parameter in mixer.conv1d.parameters():
            assert 0.45 < parameter.abs().max() <= 0.5
        if not mixer.is_attention:
            step = F.softplus(mixer.dt_bias)
            assert 0.001 <= step.min() < 0.0015
            assert 0.07 < step.max() <= 0.1001
            rate = mixer.A_log.exp()
            assert 1 <= rate.min() < 1.5
            assert 15.5 < rate.max() <= 16
            assert torch.equal(mixer.D, torch.ones_like(mixer.D))
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert abs(model.lm_head.weight.std().item() / config.initializer_range - 1) < 0.05


@torch.no_grad()
def test_residual_stream_stays_float32_under_bfloat16_weights(small_model, tokens):
    model = small_model(torch.bfloat16)
    seen = []
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    logits = model(tokens(1, 20)).logits
    assert set(seen) == {torch.float32}
    assert logits.dtype == torch.bfloat16
    exact = small_model(torch.float32)(tokens(1, 20)).logits
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max()


def test_hidden_states_and_attention_weights_can_be_asked_for(small_model, tokens):
    model = small_model(attn_implementation="eager")
    output = model(tokens(2, 7), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 7, 24)] * 5
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 7, 7)] * 2
