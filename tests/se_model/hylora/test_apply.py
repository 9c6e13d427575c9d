"""What should train, trains; what it changed is saved, loads with plain peft, and merges."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from se_model.hylora import HyLoraConfig, apply_hylora, load_adapter
from se_model.loss import causal_lm_loss
from tests.se_model.tiny_models import ARCHITECTURES, tiny_model
from tests.tolerances import EXACT, F32, within

Build = Callable[[str], nn.Module]

HYBRIDS = [
    "mamba2_hybrid",
    "mamba2_hybrid-untied",
    "jamba",
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "nemotron_h",
    "qwen3_next",
    "olmo_hybrid",
    "lfm2",
]
CASES = [
    *((name, "hylora") for name in HYBRIDS),
    ("mamba2_hybrid", "lora+"),
    ("mamba2_hybrid", "lora"),
    ("llama", "lora+"),
    ("llama", "lora"),
]


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(3, 64, shape, generator=torch.Generator().manual_seed(4))


def train_one_step(model: PeftModel) -> dict[str, Tensor]:
    """One step of plain gradient descent, large enough to see. Returns the gradients by parameter name."""
    model.train()
    loss, count = causal_lm_loss(model, random_tokens(4, 33))
    (loss / count).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    model.zero_grad()
    return gradients


def trained_adapter(model: nn.Module, variant: str) -> PeftModel:
    adapter = apply_hylora(model, HyLoraConfig(rank=4, alpha=8, variant=variant))
    train_one_step(adapter)  # the low-rank matrices B leave zero
    train_one_step(adapter)
    return adapter.eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=random_tokens(2, 21), use_cache=False).logits


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_trainable_tensor_gets_a_gradient_and_every_frozen_one_stays_bit_identical(
    build: Build, name: str, variant: str
) -> None:
    model = apply_hylora(build(name), HyLoraConfig(rank=4, alpha=8, variant=variant))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    gradients = [
        train_one_step(model),
        train_one_step(model),
    ]  # matrices A get theirs once B is no longer zero
    without = [name for name in gradients[0] if all(g[name] is None or not g[name].any() for g in gradients)]
    assert without == []
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_fresh_adapter_changes_nothing(build: Build, name: str, variant: str) -> None:
    adapter = apply_hylora(build(name), HyLoraConfig(variant=variant)).eval()
    torch.testing.assert_close(logits(adapter), logits(build(name).eval()), **within(F32))


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_merging_gives_the_adapters_logits_and_plain_peft_loads_it(
    build: Build, name: str, variant: str, tmp_path: Path
) -> None:
    adapter = trained_adapter(build(name), variant)
    expected = logits(adapter)
    assert (expected - logits(build(name).eval())).abs().max() > 1e-3

    adapter.save_pretrained(tmp_path, save_embedding_layers=False)
    again = PeftModel.from_pretrained(build(name), tmp_path).eval()
    torch.testing.assert_close(logits(again), expected, **EXACT)

    merged = adapter.merge_and_unload().eval()
    torch.testing.assert_close(logits(merged), expected, **within(F32))
    assert merged.state_dict().keys() == build(name).state_dict().keys()


# What transformers 5.23 never ties.
NEVER_TIED = {"nemotron_h", "kimi_linear", "bailing_hybrid"}


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in NEVER_TIED])
def test_tied_embeddings_stay_tied(name: str, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny_model(name, tied=True), "lora+")
    expected = logits(adapter)
    adapter.save_pretrained(tmp_path / "first", save_embedding_layers=False)
    loaded = load_adapter(tiny_model(name, tied=True), tmp_path / "first", is_trainable=True)
    loaded.save_pretrained(tmp_path / "second", save_embedding_layers=False)
    again = load_adapter(tiny_model(name, tied=True), tmp_path / "second")
    for model in (adapter, loaded, again):
        bare = model.get_base_model()
        torch.testing.assert_close(logits(model.eval()), expected, **EXACT)
        assert bare.get_output_embeddings().weight is bare.get_input_embeddings().weight
        merged = model.merge_and_unload()
        torch.testing.assert_close(logits(merged), expected, **within(F32))
        assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
        assert merged.config.tie_word_embeddings


def test_only_the_attention_layers_projections_get_low_rank_updates(build: Build) -> None:
    model = apply_hylora(build("mamba2_hybrid"), HyLoraConfig())
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert adapted == {
        f"base_model.model.backbone.layers.1.mixer.{projection}" for projection in ("in_proj", "out_proj")
    }


def test_what_is_missing_or_shared_with_others_is_refused(build: Build) -> None:
    with pytest.raises(
        ValueError,
        match=r"hylora trains 1-D convolutions, but LlamaForCausalLM has none; .* use variant 'lora\+'",
    ):
        apply_hylora(build("llama"), HyLoraConfig())
    causal_lm = build("llama")
    causal_lm.model.layers[1].mlp.gate_proj.weight = causal_lm.model.layers[0].self_attn.q_proj.weight
    with pytest.raises(
        ValueError, match=r"self_attn.q_proj of LlamaForCausalLM shares .* with model.layers.1.mlp.gate_proj"
    ):
        apply_hylora(causal_lm, HyLoraConfig(variant="lora"))
    with pytest.raises(ValueError, match="already carries an adapter"):
        apply_hylora(apply_hylora(build("mamba2_hybrid"), HyLoraConfig()), HyLoraConfig())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0}, "alpha must be positive"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"variant": "qlora"}, r"one of hylora, lora\+, lora, got 'qlora'"),
    ],
)
def test_bad_configurations_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyLoraConfig(**arguments)
