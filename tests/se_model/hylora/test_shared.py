"""A weight that several layers share has one update: trained as one, saved for each use, merged once."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from se_model.hylora import HyLoraConfig, apply_hylora, load_adapter
from se_model.loss import causal_lm_loss
from tests.se_model.tiny_models import tiny_model
from tests.tolerances import EXACT, F32, within

VARIANTS = ("hylora", "lora")
# In tiny zamba2 layers 1 and 3 share a block, and layer 2 has one of its own.
FIRST, OTHER, LATER = (f"base_model.model.model.layers.{n}.shared_transformer." for n in (1, 2, 3))


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(3, 64, shape, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=random_tokens(2, 21), use_cache=False).logits


def train(model: PeftModel, steps: int = 2) -> PeftModel:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        loss, count = causal_lm_loss(model, random_tokens(4, 17))
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(params=VARIANTS)
def trained(request: pytest.FixtureRequest) -> PeftModel:
    return train(apply_hylora(tiny_model("zamba2"), HyLoraConfig(rank=4, alpha=8, variant=request.param)))


def test_uses_of_one_weight_hold_the_same_update_and_other_weights_another(trained: PeftModel) -> None:
    own = {n: p for n, p in trained.named_parameters(remove_duplicate=False) if p.requires_grad}
    shared = [name for name in own if name.startswith(FIRST)]
    assert any("q_proj.lora_A" in name for name in shared)
    for name in shared:
        assert own[name] is own[name.replace(FIRST, LATER)], name
        assert own[name] is not own.get(name.replace(FIRST, OTHER)), name


def test_merging_gives_the_adapters_logits_and_an_ordinary_model(trained: PeftModel, tmp_path: Path) -> None:
    expected, bare = logits(trained), tiny_model("zamba2")
    assert (logits(bare) - expected).abs().max() > 1e-2
    merged = trained.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, **within(F32))
    assert merged.state_dict().keys() == bare.state_dict().keys()
    assert merged.num_parameters() == bare.num_parameters()
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), expected, **within(F32))


def test_merging_in_place_is_taken_back(trained: PeftModel) -> None:
    expected = logits(trained)
    trained.merge_adapter()
    torch.testing.assert_close(logits(trained), expected, **within(F32))
    trained.unmerge_adapter()
    torch.testing.assert_close(logits(trained), expected, **within(F32))


def test_a_copy_merges_too(trained: PeftModel) -> None:
    expected = logits(trained)
    torch.testing.assert_close(logits(copy.deepcopy(trained).merge_and_unload()), expected, **within(F32))


def test_plain_peft_loads_what_was_saved(trained: PeftModel, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path, save_embedding_layers=False)
    plain = PeftModel.from_pretrained(tiny_model("zamba2"), tmp_path).eval()
    torch.testing.assert_close(logits(plain), logits(trained), **EXACT)


def test_plain_peft_merges_the_update_once_per_use(trained: PeftModel, tmp_path: Path) -> None:
    """Why there is `load_adapter`. It can go when this fails."""
    trained.save_pretrained(tmp_path, save_embedding_layers=False)
    merged = PeftModel.from_pretrained(tiny_model("zamba2"), tmp_path).merge_and_unload().eval()
    assert (logits(merged) - logits(trained)).abs().max() > 1e-3


def test_a_loaded_adapter_trains_on_and_merges(trained: PeftModel, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_adapter(tiny_model("zamba2"), tmp_path, is_trainable=True)
    torch.testing.assert_close(logits(loaded.eval()), logits(trained), **EXACT)
    expected = logits(train(loaded))
    torch.testing.assert_close(expected, logits(train(trained)), **EXACT)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, **within(F32))


def test_loading_changes_nothing_for_models_that_share_no_weights(tmp_path: Path) -> None:
    trained = train(apply_hylora(tiny_model("bamba"), HyLoraConfig(rank=4, alpha=8)))
    trained.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = load_adapter(tiny_model("bamba"), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(trained), **EXACT)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), logits(trained), **within(F32))


def test_an_adapter_with_an_update_for_each_use_is_refused(tmp_path: Path) -> None:
    names = [f"model.layers.{n}.shared_transformer.self_attn.q_proj" for n in (1, 3)]
    plain = train(get_peft_model(tiny_model("zamba2"), LoraConfig(r=2, target_modules=names)))
    plain.save_pretrained(tmp_path, save_embedding_layers=False)
    matrices = load_file(tmp_path / "adapter_model.safetensors")
    assert not torch.equal(*(m for name, m in matrices.items() if "lora_B" in name))
    with pytest.raises(ValueError, match="different updates for uses of one shared weight"):
        load_adapter(tiny_model("zamba2"), tmp_path)
