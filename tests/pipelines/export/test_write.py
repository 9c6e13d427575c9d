"""What is exported is the trained model, to be loaded by anyone (property 8)."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.export import write
from pipelines.export.run import run
from pipelines.export.write import export, probe_logits
from pipelines.models.loading import load_model
from pipelines.models.references import ModelSource, resolve_model
from pipelines.recipe.keys.export import ExportKeys
from se_model import Mamba2HybridForCausalLM

RTOL = 1e-4
ROOT = Path(__file__).parents[3]

MakeStage = Callable[..., ExportKeys]
MakeContext = Callable[[], Context]

# Runs what the model cards say, in a process that knows nothing else.
STRANGER = """
import sys, torch
release, probe, found = sys.argv[1:]
logits = []
for form in ("merged", "adapter"):
    card = open(f"{release}/{form}/README.md").read()
    code = card.split("```python\\n")[1].split("```")[0]
    assert "pipelines" not in code
    scope = {}
    exec(code.replace("path/to/this/folder", f"{release}/{form}"), scope)
    assert scope["tokenizer"].encode("note : amber falcon holds 42 .")
    with torch.no_grad():
        logits.append(scope["model"].eval()(input_ids=torch.load(probe)).logits)
torch.save(logits, found)
"""


def test_what_the_cards_say_gives_the_trained_models_logits_in_a_fresh_process(
    make_stage: MakeStage, make_context: MakeContext, tuned: Path, base: Path, tmp_path: Path
) -> None:
    run(make_stage(format="both"), make_context())
    probe = torch.randint(200, (2, 50), generator=torch.Generator().manual_seed(5))
    torch.save(probe, tmp_path / "probe.pt")
    arguments = [tmp_path / "release", tmp_path / "probe.pt", tmp_path / "found.pt"]
    subprocess.run([sys.executable, "-c", STRANGER, *map(str, arguments)], check=True, cwd=ROOT, timeout=240)
    merged, adapted = torch.load(tmp_path / "found.pt")
    with torch.no_grad():
        trained = load_model(resolve_model(str(tuned), {}))(input_ids=probe).logits
        untrained = load_model(resolve_model(str(base), {}))(input_ids=probe).logits
    largest = float(trained.abs().max())
    torch.testing.assert_close(merged, trained, rtol=RTOL, atol=RTOL * largest)
    torch.testing.assert_close(adapted, trained, rtol=0, atol=0)
    assert float((trained - untrained).abs().max()) > 0.01 * largest


def test_the_result_tells_how_close_the_logits_are(make_stage: MakeStage, make_context: MakeContext) -> None:
    written = export(make_stage(format="both"), make_context())
    assert [each["format"] for each in written] == ["merged", "adapter"]
    merged, adapter = written
    assert 0 < merged["largest_difference"] < RTOL * merged["largest_logit"]
    assert adapter["largest_difference"] == 0


def test_weights_are_safetensors_only(
    make_stage: MakeStage, make_context: MakeContext, tmp_path: Path
) -> None:
    export(make_stage(format="both"), make_context())
    names = {file.suffix for file in (tmp_path / "release").rglob("*") if file.is_file()}
    assert ".safetensors" in names
    assert not names & {".bin", ".pt", ".pth", ".pkl"}


def test_a_merged_export_in_bf16_has_bf16_weights(
    make_stage: MakeStage, make_context: MakeContext, tmp_path: Path
) -> None:
    export(make_stage(precision="bf16"), make_context())
    model = Mamba2HybridForCausalLM.from_pretrained(tmp_path / "release/merged", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_adapter_names_its_base_as_the_run_did(
    make_stage: MakeStage, make_context: MakeContext, tmp_path: Path, base: Path
) -> None:
    export(make_stage(format="adapter"), make_context())
    configuration = json.loads((tmp_path / "release/adapter/adapter_config.json").read_text())
    assert configuration["base_model_name_or_path"] == str(base)
    again = load_model(resolve_model(str(tmp_path / "release/adapter"), {}))
    assert probe_logits(again).isfinite().all()


def test_files_that_give_other_logits_are_not_exported(
    make_stage: MakeStage, make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_wrongly(form: str, source: ModelSource, stage: ExportKeys, folder: Path) -> None:
        load_model(ModelSource(source.base)).save_pretrained(folder)  # without what was trained

    monkeypatch.setattr(write, "_write", write_wrongly)
    with pytest.raises(EspanError, match="does not give the trained model's logits"):
        export(make_stage(), make_context())
    assert list((tmp_path / "release").iterdir()) == []


def test_what_a_stopped_run_left_behind_is_replaced(
    make_stage: MakeStage, make_context: MakeContext, tmp_path: Path
) -> None:
    stale = tmp_path / "release/merged/model.safetensors"
    context = make_context()
    stale.parent.mkdir()
    stale.write_text("half")
    (stale.parent / "stale.txt").write_text("left")
    export(make_stage(), context)
    assert stale.stat().st_size > 1000
    assert not (stale.parent / "stale.txt").exists()


def test_a_model_without_an_adapter_is_exported_merged_only(make_context: MakeContext, base: Path) -> None:
    with pytest.raises(EspanError, match="has no adapter; export it with format: merged"):
        export(ExportKeys(model=str(base), format="adapter"), make_context())
    (written,) = export(ExportKeys(model=str(base)), make_context())
    assert written["largest_difference"] == 0
