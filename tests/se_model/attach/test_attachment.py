"""An attached attention is the one that runs, under padding, packing, decoding and recomputation."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from se_model.attach import attach, attached, attention_layers, detach, set_step
from se_model.attentions import ATTENTION_KINDS, AttentionConfig
from se_model.baselines import FullConfig, NoMemoryConfig, RandomConfig, S2Config, SlidingWindowConfig
from se_model.loss import causal_lm_loss, packed_position_ids
from se_model.span import SpanConfig
from tests.se_model.architectures.probes import logits, random_tokens
from tests.se_model.tiny_models import UNKNOWN, tiny_model
from tests.tolerances import EXACT, F32, F32_SHORT, within

MODELS = ["llama", "bamba", "mamba2_hybrid-ends"]
LENGTH = 45
SPAN = SpanConfig(chunk_sizes=16, block_size=4, top_k=2)
EVERYTHING = SpanConfig(chunk_sizes=16, block_size=1, top_k=LENGTH)
EVERY_KIND = [
    FullConfig(),
    SPAN,
    SlidingWindowConfig(window=8),
    S2Config(group_size=16),
    NoMemoryConfig(chunk_sizes=16),
    RandomConfig(chunk_sizes=16, block_size=4, top_k=2),
]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny_model(request.param)


def test_every_layer_runs_the_attached_attention(model: nn.Module) -> None:
    tokens = random_tokens(2, LENGTH)
    before = logits(model, tokens)
    asked = []

    class Recording(FullConfig):
        def bind(self, *, layer: int, step: int) -> Callable[..., Tensor]:
            asked.append((layer, step))
            return super().bind(layer=layer, step=step)

    attach(model, Recording())
    set_step(model, 7)
    torch.testing.assert_close(logits(model, tokens), before, **within(F32))
    assert asked == [(layer, 7) for layer in range(len(attention_layers(model)))]


def test_with_every_block_retrieved_logits_are_those_of_full_attention(model: nn.Module) -> None:
    tokens = random_tokens(2, LENGTH)
    before = logits(model, tokens)
    torch.testing.assert_close(logits(attach(model, EVERYTHING), tokens), before, **within(F32))
    assert (logits(attach(model, SPAN), tokens) - before).abs().max() > 1e-4


@pytest.mark.parametrize("config", EVERY_KIND, ids=lambda config: config.kind)
def test_every_kind_of_attention_trains_a_model(model: nn.Module, config: AttentionConfig) -> None:
    attach(model, config)
    loss, count = causal_lm_loss(model.train(), random_tokens(2, LENGTH))
    (loss / count).backward()
    for name, layer in attention_layers(model):
        for parameter, value in layer.named_parameters():
            assert value.grad.isfinite().all(), f"{name}.{parameter}"
            assert value.grad.any(), f"{name}.{parameter}"


def test_every_kind_of_attention_was_tried() -> None:
    assert {config.kind for config in EVERY_KIND} == ATTENTION_KINDS.keys()


def test_detaching_restores_bit_identical_logits(model: nn.Module) -> None:
    tokens = random_tokens(2, LENGTH)
    before = logits(model, tokens)
    assert attached(model) is None
    assert attached(attach(attach(model, FullConfig()), SPAN)) is SPAN
    logits(model, tokens)
    assert detach(model) is model
    assert attached(model) is None
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model: nn.Module, side: str) -> None:
    attach(model, SPAN)
    rows = [random_tokens(1, n) for n in (LENGTH, 29, 16, 1)]
    tokens, mask = (
        torch.zeros(len(rows), LENGTH, dtype=torch.long),
        torch.zeros(len(rows), LENGTH, dtype=torch.long),
    )
    for row, own in enumerate(rows):
        span = slice(LENGTH - own.shape[1], LENGTH) if side == "left" else slice(0, own.shape[1])
        tokens[row, span], mask[row, span] = own[0], 1
    padded = logits(model, tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    assert padded.isfinite().all()
    for row, own in enumerate(rows):
        torch.testing.assert_close(padded[row, mask[row].bool()], logits(model, own)[0], **within(F32))


@pytest.mark.parametrize("name", ["llama", "mamba2_hybrid-ends"])
def test_packed_documents_equal_their_own_rows(name: str) -> None:
    model = attach(tiny_model(name), SPAN)
    tokens, bounds = random_tokens(1, LENGTH), (0, 1, 20, 21, LENGTH)
    cu_seqlens = torch.tensor(bounds)
    packed = logits(model, tokens, cu_seqlens=cu_seqlens, position_ids=packed_position_ids(cu_seqlens))
    for start, end in itertools.pairwise(bounds):
        torch.testing.assert_close(packed[:, start:end], logits(model, tokens[:, start:end]), **within(F32))


def test_documents_are_also_read_from_positions_that_restart() -> None:
    model = attach(tiny_model("llama"), SPAN)
    tokens = random_tokens(2, LENGTH)
    starts = torch.tensor([20, 7])
    positions = torch.arange(LENGTH).repeat(2, 1)
    positions = torch.where(positions >= starts[:, None], positions - starts[:, None], positions)
    packed = logits(model, tokens, position_ids=positions)
    for row, start in enumerate(starts):
        apart = [logits(model, tokens[row : row + 1, :start]), logits(model, tokens[row : row + 1, start:])]
        torch.testing.assert_close(packed[row], torch.cat(apart, dim=1)[0], **within(F32))


@pytest.mark.parametrize("packing", ["cu_seqlens", "position_ids"])
def test_packed_documents_are_refused_where_state_would_leak(packing: str) -> None:
    cu_seqlens = torch.tensor([0, 20, LENGTH])
    argument = cu_seqlens if packing == "cu_seqlens" else packed_position_ids(cu_seqlens)
    model = attach(tiny_model(UNKNOWN), SPAN)
    with pytest.raises(
        ValueError, match=r"carry state across packed documents in .* modules \(first: layers.0.self_attn"
    ):
        logits(model, random_tokens(1, LENGTH), **{packing: argument})


def test_decoding_attends_fully_to_the_cache(model: nn.Module) -> None:
    """The prompt is shorter than a chunk, and there span attention is full attention too."""
    tokens, prompt = random_tokens(2, 30), 9
    expected = logits(model, tokens)
    attach(model, SPAN)
    with torch.no_grad():
        step = model(input_ids=tokens[:, :prompt], use_cache=True)
        for position in range(prompt, tokens.shape[1]):
            torch.testing.assert_close(step.logits[:, -1], expected[:, position - 1], **within(F32))
            arguments = {"position_ids": torch.full((2, 1), position)}
            step = model(
                input_ids=tokens[:, position : position + 1],
                past_key_values=step.past_key_values,
                use_cache=True,
                **arguments,
            )


def test_several_tokens_after_a_cache_attend_causally() -> None:
    model, tokens = tiny_model("llama"), random_tokens(2, 30)
    expected = logits(model, tokens)
    attach(model, SPAN)
    with torch.no_grad():
        cache = model(input_ids=tokens[:, :9], use_cache=True).past_key_values
        rest = model(input_ids=tokens[:, 9:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, expected[:, 9:], **within(F32))


def test_generating_from_left_padded_prompts_equals_generating_alone(model: nn.Module) -> None:
    attach(model, SPAN)
    prompts = [random_tokens(1, 21), random_tokens(1, 12)]
    batch = torch.cat([nn.functional.pad(prompt, (21 - prompt.shape[1], 0)) for prompt in prompts])
    arguments = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(batch, attention_mask=(batch != 0).long(), **arguments)
    for row, prompt in enumerate(prompts):
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **arguments)
        assert together[row, 21:].tolist() == alone[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("name", ["llama", "mamba2_hybrid-ends"])
def test_activation_checkpointing_recomputes_the_same_attention(name: str) -> None:
    model = attach(tiny_model(name), SpanConfig(chunk_sizes=(8, 16), block_size=4, top_k=2)).train()
    tokens = random_tokens(1, LENGTH)

    def gradients(step: int) -> dict[str, Tensor]:
        set_step(model, step)
        model.zero_grad()
        loss, _ = causal_lm_loss(model, tokens)
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}

    stored = [gradients(step) for step in range(4)]
    model.gradient_checkpointing_enable()
    for step, expected in enumerate(stored):
        for name, gradient in gradients(step).items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=0, atol=F32_SHORT, msg=lambda m, name=name: f"{name}: {m}"
            )
    assert any((stored[0][name] - stored[1][name]).abs().max() > 1e-4 for name in stored[0]), (
        "no step drew other chunk sizes"
    )


def test_a_peft_model_is_attached_through_its_adapter() -> None:
    model = tiny_model("llama")
    tokens = random_tokens(1, LENGTH)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    before = logits(adapted, tokens)
    attach(adapted, SPAN)
    assert attached(adapted) is SPAN
    assert (logits(adapted, tokens) - before).abs().max() > 1e-4
    assert torch.equal(logits(detach(adapted), tokens), before)


def test_a_copy_of_an_attached_model_stands_alone() -> None:
    model = attach(tiny_model("llama"), SPAN)
    tokens = random_tokens(1, LENGTH)
    expected = logits(model, tokens)
    other = copy.deepcopy(model)
    attach(model, FullConfig())
    assert attached(other) == SPAN
    assert torch.equal(logits(other, tokens), expected)


def test_a_saved_model_does_not_name_the_attention(tmp_path: Path) -> None:
    model = attach(tiny_model("mamba2_hybrid-ends"), SPAN)
    model.save_pretrained(tmp_path)
    assert "expansion_span" not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = random_tokens(1, LENGTH)
    torch.testing.assert_close(logits(again, tokens), logits(detach(model), tokens), **EXACT)
