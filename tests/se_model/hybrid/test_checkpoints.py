"""Checkpoints, ours and those of state-spaces: nothing is filled in, dropped or unpickled silently."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from se_model.hybrid import Mamba2HybridConfig, Mamba2HybridForCausalLM
from tests.tolerances import F32

PUBLISHED = {
    "d_model": 24,
    "d_intermediate": 0,
    "n_layer": 3,
    "vocab_size": 61,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 12},
    "attn_layer_idx": [1],
    "attn_cfg": {
        "causal": True,
        "d_conv": 4,
        "head_dim": 10,
        "num_heads": 3,
        "out_proj_bias": False,
        "qkv_proj_bias": False,
        "rotary_emb_dim": 6,
    },
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}
SAME_IN_OUR_WORDS = {
    "num_hidden_layers": 3,
    "attn_layer_indices": [1],
    "n_groups": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}


def publish(folder: Path, tensors: object, config: dict | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(PUBLISHED if config is None else config))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def original(small_model) -> Mamba2HybridForCausalLM:
    return small_model(torch.float32, **SAME_IN_OUR_WORDS)


def assert_same_weights(model: torch.nn.Module, reference: torch.nn.Module) -> None:
    tensors = model.state_dict()
    assert tensors.keys() == reference.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in reference.state_dict().items())


@torch.no_grad()
def test_a_published_folder_gives_the_same_logits_and_survives_our_format(original, tokens, tmp_path):
    (tmp_path / "published").mkdir()
    folder = publish(tmp_path / "published", original.state_dict())
    model = Mamba2HybridForCausalLM.from_pretrained(folder)
    ids = tokens(2, 20)
    assert_same_weights(model, original)
    torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=0, atol=F32)
    assert not model.training
    assert model.lm_head.weight is model.backbone.embedding.weight

    model.save_pretrained(tmp_path / "ours")
    assert not list((tmp_path / "ours").glob("*.bin"))
    for again in (Mamba2HybridForCausalLM, AutoModelForCausalLM):
        read = again.from_pretrained(tmp_path / "ours")
        assert_same_weights(read, original)
        torch.testing.assert_close(read(ids).logits, original(ids).logits, rtol=0, atol=F32)


def test_a_published_folder_may_leave_out_the_tied_head_and_be_cast(original, tmp_path):
    tensors = original.state_dict()
    del tensors["lm_head.weight"]
    folder = publish(tmp_path, tensors)
    model = Mamba2HybridForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", ssm_chunk_size=32
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert model.config.ssm_chunk_size == 32


def test_a_model_does_not_change_when_the_file_behind_it_does(original, tmp_path):
    folder = publish(tmp_path, original.state_dict())
    model = Mamba2HybridForCausalLM.from_pretrained(folder)
    size = (folder / "pytorch_model.bin").stat().st_size
    (folder / "pytorch_model.bin").write_bytes(bytes(size))
    assert_same_weights(model, original)


def damage(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["backbone.layers.0.mixer.D"]
    tensors["backbone.layers.2.mlp.weight"] = torch.zeros(2)
    tensors["backbone.norm_f.weight"] = torch.zeros(3)


def assert_names_all_damage(error: ValueError) -> None:
    message = str(error)
    assert "missing: backbone.layers.0.mixer.D" in message
    assert "unexpected: backbone.layers.2.mlp.weight" in message
    assert "shape: backbone.norm_f.weight is [3], the configuration asks for [24]" in message


def test_published_tensors_that_do_not_fit_are_all_named_at_once(original, tmp_path):
    tensors = original.state_dict()
    damage(tensors)
    with pytest.raises(ValueError, match="do not fit") as raised:
        Mamba2HybridForCausalLM.from_pretrained(publish(tmp_path, tensors))
    assert_names_all_damage(raised.value)


def test_our_tensors_that_do_not_fit_are_all_named_at_once(original, tmp_path):
    original.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not fit") as raised:
        Mamba2HybridForCausalLM.from_pretrained(tmp_path)
    assert_names_all_damage(raised.value)


def test_a_head_that_is_tied_but_different_is_refused(original, tmp_path):
    tensors = original.state_dict()
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    with pytest.raises(ValueError, match=r"lm_head.weight differs from backbone.embedding.weight"):
        Mamba2HybridForCausalLM.from_pretrained(publish(tmp_path, tensors))


class RunsWhenUnpickled:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_a_pickle_with_code_is_refused_and_never_run(original, tmp_path):
    witness = tmp_path / "executed"
    folder = publish(tmp_path, original.state_dict() | {"extra": RunsWhenUnpickled(witness)})
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: not a plain file of tensors"):
        Mamba2HybridForCausalLM.from_pretrained(folder)
    assert not witness.exists()


def test_files_that_hold_no_named_tensors_are_refused(original, tmp_path):
    folder = publish(tmp_path, [torch.zeros(2)])
    with pytest.raises(ValueError, match="expected a dictionary of tensors"):
        Mamba2HybridForCausalLM.from_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="not a plain file of tensors"):
        Mamba2HybridForCausalLM.from_pretrained(folder)


def test_resized_embeddings_survive_our_format(original, tmp_path):
    original.resize_token_embeddings(71)
    original.save_pretrained(tmp_path)
    read = Mamba2HybridForCausalLM.from_pretrained(tmp_path)
    assert read.lm_head.weight.shape == (71, 24)
    assert read.lm_head.weight is read.backbone.embedding.weight


def test_the_published_configuration_of_the_paper_is_the_default(tmp_path):
    raw = {
        "d_model": 2560, "d_intermediate": 0, "n_layer": 64, "vocab_size": 50277,
        "ssm_cfg": {"layer": "Mamba2"},
        "attn_layer_idx": [9, 18, 27, 36, 45, 56],
        "attn_cfg": {"causal": True, "d_conv": 4, "head_dim": 128, "num_heads": 30, "out_proj_bias": False,
                     "qkv_proj_bias": False, "rotary_emb_dim": 64},
        "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 16,
        "tie_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert Mamba2HybridConfig.from_pretrained(tmp_path).to_dict() == Mamba2HybridConfig().to_dict()


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (None, {"d_intermediate": 128}, "d_intermediate: 128, but only 0 is served"),
        (None, {"rms_norm": False}, "rms_norm: False"),
        (None, {"d_modle": 3}, "d_modle: unknown"),
        ("ssm_cfg", {"layer": "Mamba1"}, "ssm_cfg.layer: 'Mamba1', but only 'Mamba2' is served"),
        ("ssm_cfg", {"norm_before_gate": True}, "ssm_cfg.norm_before_gate: True"),
        ("ssm_cfg", {"d_stat": 3}, "ssm_cfg.d_stat: unknown"),
        ("attn_cfg", {"causal": False}, "attn_cfg.causal: False"),
        ("attn_cfg", {"rotary_emb_interleaved": True}, "attn_cfg.rotary_emb_interleaved: True"),
    ],
    ids=str,
)
def test_published_configurations_that_ask_for_another_model_are_refused(tmp_path, section, change, message):
    raw = json.loads(json.dumps(PUBLISHED))
    (raw if section is None else raw[section]).update(change)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        Mamba2HybridConfig.from_pretrained(tmp_path)


def test_keys_that_the_published_file_leaves_out_take_the_values_of_its_own_library(tmp_path):
    raw = json.loads(json.dumps(PUBLISHED))
    del raw["attn_cfg"]["qkv_proj_bias"], raw["attn_cfg"]["d_conv"], raw["pad_vocab_size_multiple"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = Mamba2HybridConfig.from_pretrained(tmp_path)
    assert (config.qkv_bias, config.attention_conv_kernel) == (True, 0)
    assert config.vocab_size == 64


def test_arguments_that_a_published_folder_cannot_serve_are_refused(original, tmp_path):
    folder = publish(tmp_path, original.state_dict())
    with pytest.raises(ValueError, match="device_map: not served"):
        Mamba2HybridForCausalLM.from_pretrained(folder, device_map="auto")
