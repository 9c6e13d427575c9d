"""Models by reference."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from pipelines.context import CheckContext, EarlierStage, StageOutput
from pipelines.errors import EspanError, InvalidKeyError
from pipelines.models import hub
from pipelines.models.loading import load_model
from pipelines.models.references import ModelSource, check_model, resolve_model, write_model_file
from pipelines.recipe.keys.section import StageKeys
from se_model import HyLoraConfig, apply_hylora
from tests.se_model.tiny_models import tiny_model
from tests.tolerances import F32, within

SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "attn_layer_indices": [1],
    "state_size": 8,
    "mamba_head_dim": 16,
    "num_attention_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
}
TOKENS = torch.arange(20)[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result = model(TOKENS).logits
    assert isinstance(result, torch.Tensor)
    return result


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A run's folder with a base model in stage `base` and an adapter for it in stage `tuned`."""
    torch.manual_seed(0)
    run = tmp_path / "run"
    model = load_model(ModelSource("", new=SIZES))
    model.save_pretrained(run / "base" / "model")
    write_model_file(str(run / "base"), ModelSource("./model"))
    adapted = apply_hylora(model, HyLoraConfig(rank=2, alpha=4))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(run / "tuned" / "model", save_embedding_layers=False)
    write_model_file(str(run / "tuned"), ModelSource("../base/model", adapter="./model"))
    return run / "base"


def stage_output(path: Path) -> StageOutput:
    return StageOutput(path.name, "train", str(path), {}, "", StageKeys())


def test_a_train_stage_a_folder_and_its_checkpoint_are_the_same_model(base: Path) -> None:
    by_stage = resolve_model("base", {"base": stage_output(base)})
    assert by_stage == resolve_model(str(base), {})
    assert by_stage.base == str(base / "model") == resolve_model(str(base / "model"), {}).base


def test_a_moved_run_still_finds_its_models(base: Path, tmp_path: Path) -> None:
    before = logits(load_model(resolve_model(str(base.parent / "tuned"), {})))
    shutil.move(base.parent, tmp_path / "elsewhere")
    assert torch.equal(logits(load_model(resolve_model(str(tmp_path / "elsewhere" / "tuned"), {}))), before)


def test_merging_an_adapter_gives_its_logits(base: Path) -> None:
    source = resolve_model(str(base.parent / "tuned"), {})
    adapted, merged = load_model(source), load_model(source, merge=True)
    assert isinstance(adapted, PeftModel)
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(merged), logits(load_model(resolve_model(str(base), {}))), atol=1e-2)


def test_an_adapter_as_peft_writes_it_is_a_model(base: Path) -> None:
    folder = base.parent / "tuned" / "model"
    configuration = json.loads((folder / "adapter_config.json").read_text())
    configuration["base_model_name_or_path"] = str(base / "model")
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    source = resolve_model(str(folder), {})
    assert (source.base, source.adapter) == (str(base / "model"), str(folder))


def test_weights_take_the_type_asked_for(base: Path) -> None:
    source = resolve_model(str(base), {})
    for dtype in (torch.bfloat16, "bfloat16"):
        assert {parameter.dtype for parameter in load_model(source, dtype).parameters()} == {torch.bfloat16}


def test_a_tensor_of_another_shape_is_named(base: Path) -> None:
    path = base / "model" / "config.json"
    path.write_text(path.read_text().replace('"state_size": 8', '"state_size": 4'))
    with pytest.raises(EspanError, match=r"backbone\.layers\.0\.mixer\.conv1d") as caught:
        load_model(resolve_model(str(base), {}))
    assert "\n" not in str(caught.value)


def test_a_tensor_of_another_shape_in_a_transformers_model_is_named(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(tmp_path)
    load_model(resolve_model(str(tmp_path), {}))
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"vocab_size": 32', '"vocab_size": 40'))
    with pytest.raises(EspanError, match=r"embed_tokens\.weight has shape \[32, 16\] instead of \[40, 16\]"):
        load_model(resolve_model(str(tmp_path), {}))


def test_a_new_model_is_decided_by_torchs_generator() -> None:
    source = ModelSource("", new=SIZES)
    torch.manual_seed(1)
    first = logits(load_model(source))
    torch.manual_seed(1)
    assert torch.equal(logits(load_model(source)), first)


def test_a_misspelt_size_of_a_new_model_is_refused() -> None:
    with pytest.raises(EspanError, match="hidden_sise"):
        load_model(ModelSource("", new={"hidden_sise": 3}))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EspanError, match="holds no model"):
        resolve_model(str(tmp_path), {})


def test_a_model_file_of_another_format_is_refused(base: Path) -> None:
    (base / "model.json").write_text('{"format": "other"}')
    with pytest.raises(EspanError, match=r"not of format espan-model/1"):
        resolve_model(str(base), {})


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    earlier = {
        name: EarlierStage(name, kind, StageKeys(), str(tmp_path / name))
        for name, kind in {"tuned": "train", "corpus": "prepare"}.items()
    }
    return CheckContext("x", str(tmp_path), 0, str(tmp_path), earlier)


@pytest.mark.parametrize("reference", ["tuned", "builtin:tiny"])
def test_models_that_are_to_be_had_pass_the_check(context: CheckContext, reference: str) -> None:
    check_model("model", reference, context)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("corpus", "stage 'corpus' is of kind prepare, but train is needed here"),
        ("./nowhere", "neither an earlier stage nor a path"),
        ("builtin:tinny", "did you mean 'builtin:tiny'"),
        ("tunde", "did you mean 'tuned'"),
    ],
)
def test_models_that_are_not_to_be_had_fail_the_check(
    context: CheckContext, reference: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(InvalidKeyError, match=message):
        check_model("model", reference, context)


def test_an_adapter_of_a_model_with_shared_weights_merges_to_its_own_logits(tmp_path: Path) -> None:
    base = tiny_model("zamba2")
    base.save_pretrained(tmp_path / "base")
    adapted = apply_hylora(base, HyLoraConfig(rank=2, alpha=4)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    source = ModelSource(str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    for merge in (False, True):
        torch.testing.assert_close(logits(load_model(source, merge=merge)), logits(adapted), **within(F32))
