"""A config.json may ask for an attention whose package is not installed: the model loads all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import EspanError
from pipelines.models.configuration import read_configuration
from pipelines.models.loading import load_model
from pipelines.models.references import resolve_model
from pipelines.models.weight_files import check_model_files
from tests.se_model.tiny_models import tiny_model

WISHES = [
    {"attn_implementation": "flash_attention_2"},
    {"_attn_implementation": "flash_attention_3"},
    {"attn_implementation": "kernels-community/flash-attn2"},
    {"attn_implementation": "an attention of a later version"},
    {"experts_implementation": "an implementation of a later version"},
    {"dtype": "auto", "torch_dtype": "auto"},
    {"dtype": "torch.bfloat16"},
    {"dtype": None, "torch_dtype": 5},
]


@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize("family", ["llama", "mamba2_hybrid"])
def test_a_wish_for_an_implementation_does_not_keep_a_model_from_loading(
    tmp_path: Path, family: str, wish: dict[str, Any]
) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    plain = load_model(resolve_model(str(tmp_path), {}))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wish))
    model = load_model(resolve_model(str(tmp_path), {}))
    assert model.config._attn_implementation == "sdpa"
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, plain(tokens).logits)


def test_wishes_in_nested_configurations_are_left_out_too(tmp_path: Path) -> None:
    nested = {"model_type": "qwen3_5_text", "attn_implementation": "flash_attention_2"}
    content = {"model_type": "qwen3_5", "text_config": nested, "_attn_implementation": "flash_attention_2"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    configuration = read_configuration(tmp_path)
    assert configuration._attn_implementation is None
    assert configuration.text_config._attn_implementation is None


@pytest.mark.parametrize("broken", [{"hidden_size": -1}, {"num_attention_heads": "four"}], ids=str)
def test_a_configuration_that_contradicts_itself_is_named(tmp_path: Path, broken: dict[str, Any]) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | broken))
    with pytest.raises(
        EspanError, match=rf"config.json cannot be read: .*{next(iter(broken)).split('_')[0]}"
    ):
        read_configuration(tmp_path)


def test_quantized_weights_are_refused_before_anything_runs(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))
    with pytest.raises(EspanError, match=r"config.json has a quantization_config, .*; use the checkpoint"):
        check_model_files(str(tmp_path))
