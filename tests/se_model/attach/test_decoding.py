"""A model that decodes with span attention says what it would of the whole row, or refuses."""

from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.zamba2.configuration_zamba2 import Zamba2Config

from se_model.attach import attach, detach
from se_model.attach.marks import MARK
from se_model.span import Attention, SpanConfig, select_blocks
from se_model.span.documents import Documents
from tests.se_model.architectures.probes import logits, random_tokens
from tests.se_model.sizes import SIZES
from tests.se_model.tiny_models import tiny_model
from tests.tolerances import F32, F64, within

LENGTH = 60
SPAN = SpanConfig(chunk_sizes=16, block_size=4, top_k=2, selection="causal", refresh=8, decoding="span")
# Bamba computes its scan in float32, whatever its weights are.
TOLERANCES = {"llama": F64, "bamba": F32, "mamba2_hybrid-ends": F64}
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(params=TOLERANCES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> nn.Module:
    return attach(tiny_model(name).double(), SPAN)


@torch.no_grad()
def decode(model: nn.Module, tokens: Tensor, prompt: int, new: int = 1) -> Tensor:
    """Logits of a prefill and of all that follows it, `new` tokens at a time."""
    cache, parts = None, []
    for start, end in [(0, prompt), *((at, at + new) for at in range(prompt, tokens.shape[1], new))]:
        part = tokens[:, start:end]
        positions = torch.arange(start, start + part.shape[1]).expand_as(part)
        step = model(input_ids=part, position_ids=positions, past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        parts.append(step.logits)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("prompt", [1, 16, 30])
def test_token_by_token_gives_the_logits_of_the_whole_row(name: str, model: nn.Module, prompt: int) -> None:
    tokens = random_tokens(2, LENGTH)
    expected = logits(model, tokens)
    torch.testing.assert_close(decode(model, tokens, prompt), expected, **within(TOLERANCES[name]))
    attach(model, replace(SPAN, decoding="full"))
    assert (decode(model, tokens, prompt) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "mamba2_hybrid-ends"])
@pytest.mark.parametrize("summary", ["attention", "mean_key"])
def test_several_tokens_at_once_give_the_logits_of_the_whole_row(name: str, summary: str) -> None:
    config = SpanConfig(
        chunk_sizes=(8, 16), block_size=4, top_k=3, selection="causal", decoding="span", summary=summary
    )
    model, tokens = attach(tiny_model(name).double(), config), random_tokens(2, LENGTH)
    torch.testing.assert_close(decode(model, tokens, 13, new=11), logits(model, tokens), **within(F64))


def test_generated_tokens_are_the_likeliest_of_the_whole_row(model: nn.Module) -> None:
    generated = model.generate(random_tokens(2, 21), max_new_tokens=30, **GREEDY)
    assert torch.equal(generated[:, 21:], logits(model, generated)[:, 20:-1].argmax(-1))


def test_left_padded_prompts_generate_what_each_does_alone(model: nn.Module) -> None:
    prompts = [random_tokens(1, 37), random_tokens(1, 24), random_tokens(1, 3)]
    batch = torch.cat([nn.functional.pad(prompt, (37 - prompt.shape[1], 0)) for prompt in prompts])
    together = model.generate(batch, attention_mask=(batch != 0).long(), max_new_tokens=24, **GREEDY)
    for row, prompt in enumerate(prompts):
        alone = model.generate(prompt, max_new_tokens=24, **GREEDY)
        assert together[row, 37:].tolist() == alone[0, prompt.shape[1] :].tolist()


def test_a_row_that_begins_after_the_prefill_counts_from_there() -> None:
    model, tokens = attach(tiny_model("llama").double(), SPAN), random_tokens(2, LENGTH)
    mask = torch.ones_like(tokens)
    mask[1, :30] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        cache, parts = None, []
        for start, end in [(0, 20), (20, 40), (40, 41), (41, LENGTH)]:
            step = model(
                input_ids=tokens[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
            cache = step.past_key_values
            parts.append(step.logits)
    together = torch.cat(parts, dim=1)
    torch.testing.assert_close(together[:1], logits(model, tokens[:1]), **within(F64))
    torch.testing.assert_close(together[1:, 30:], logits(model, tokens[1:, 30:]), **within(F64))


@dataclass(frozen=True)
class PromptThenFull:
    """Span attention inside the prompt and full attention after it, under a mask spelt out pair by pair."""

    kind: ClassVar[str] = "full"
    span: SpanConfig
    prompt: int

    def bind(self, *, layer: int, step: int) -> Attention:
        return self.attend

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        cu_seqlens: Documents | None = None,
    ) -> Tensor:
        (batch, heads, length, _), groups, of = q.shape, k.shape[1], self.span.options(layer=0, step=0)
        blocks = select_blocks(
            *(x[:, :, : self.prompt] for x in (q, k, v)),
            chunk_size=of.chunk_size,
            block_size=of.block_size,
            top_k=of.top_k,
            selection=of.selection,
            refresh=of.refresh,
            summary=of.summary,
            relevancy=of.relevancy,
            queries=of.queries,
            scale=scale,
        )
        visible = torch.ones(length, length, dtype=torch.bool).tril().repeat(batch, heads, 1, 1)
        for b, h, t in product(range(batch), range(heads), range(self.prompt)):
            visible[b, h, t, : t // of.chunk_size * of.chunk_size] = False
            for block in blocks[b, h * groups // heads, t // of.queries_per_choice].tolist():
                if block >= 0:
                    visible[b, h, t, block * of.block_size : (block + 1) * of.block_size] = True
        k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)


@pytest.mark.parametrize(("selection", "refresh"), [("chunk", None), ("causal", 8)])
def test_after_a_prefill_with_span_attention_new_tokens_attend_to_everything(
    name: str, model: nn.Module, selection: str, refresh: int | None
) -> None:
    tokens, span = random_tokens(2, 50), replace(SPAN, selection=selection, refresh=refresh, decoding="full")
    expected = logits(attach(model, PromptThenFull(span, prompt=37)), tokens)
    actual = decode(attach(model, span), tokens, prompt=37)
    torch.testing.assert_close(actual, expected, **within(TOLERANCES[name]))


def llama() -> nn.Module:
    return attach(tiny_model("llama").double(), SPAN)


def test_beam_search_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not continue the row of .* Beam search"):
        llama().generate(random_tokens(1, 21), num_beams=4, max_new_tokens=20, **GREEDY)


@torch.no_grad()
def test_a_cache_that_was_cropped_or_belongs_to_another_prefill_is_refused() -> None:
    model, tokens = llama(), random_tokens(2, LENGTH)
    for spoil in ("crop", "other"):
        cache = model(input_ids=tokens[:, :21], use_cache=True).past_key_values
        if spoil == "crop":
            cache.crop(-1)
        else:
            model(input_ids=tokens[:, 1:22])
        with pytest.raises(ValueError, match="does not continue the row of 21 tokens"):
            model(input_ids=tokens[:, 21:22], past_key_values=cache)


def test_a_prefill_that_kept_no_state_cannot_be_continued() -> None:
    model, tokens = llama(), random_tokens(2, LENGTH)
    cache = model(input_ids=tokens[:, :21], use_cache=True).past_key_values
    with torch.no_grad(), pytest.raises(ValueError, match="in evaluation mode and without gradients"):
        model(input_ids=tokens[:, 21:22], past_key_values=cache)


def test_layers_that_share_their_weights_decode_apart() -> None:
    config = Zamba2Config(
        **SIZES | {"num_hidden_layers": 4},
        n_mamba_heads=4,
        mamba_d_state=8,
        mamba_ngroups=1,
        mamba_expand=2,
        chunk_size=8,
        adapter_rank=4,
        num_mem_blocks=1,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
    )
    torch.manual_seed(1)
    model, tokens = AutoModelForCausalLM.from_config(config).eval(), random_tokens(2, LENGTH)
    attach(model, SPAN)
    torch.testing.assert_close(decode(model, tokens, 20), logits(model, tokens), **within(F32))


def test_only_an_evaluation_without_gradients_keeps_a_state_and_only_one() -> None:
    model, tokens = llama(), random_tokens(2, LENGTH)
    states = getattr(model, MARK).decoding
    model(input_ids=tokens)
    assert states == {}
    logits(model, tokens)
    logits(model, tokens[:, :30])
    assert [[run.state.length for run in runs] for runs in states.values()] == [[30], [30]]
    logits(model.train(), tokens)
    assert states == {}
    logits(model.eval(), tokens)
    detach(model)
    assert not hasattr(model, MARK)


def test_a_generation_keeps_only_what_the_whole_row_needs() -> None:
    model = llama()
    model.generate(random_tokens(1, 21), max_new_tokens=40, **GREEDY)
    for (run,) in getattr(model, MARK).decoding.values():
        tensors = [x for x in vars(run.state).values() if isinstance(x, Tensor)]
        # Of a complete block the four keys that represent it, as large as two tokens' queries.
        assert sum(x.untyped_storage().nbytes() for x in tensors) <= 8 * 32 * (2 * (60 // 4) + 4 + 2)
