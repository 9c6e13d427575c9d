"""Writes a model's files and proves them: loaded again, they must give the trained model's logits."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines import storage
from pipelines.errors import EspanError
from pipelines.export.card import Check, model_card
from pipelines.export.stage import ExportStage, Form
from pipelines.hub import split_reference
from pipelines.model_files import is_place, local_folder
from pipelines.models import ModelSource, load_model, resolve_model
from pipelines.plain_path import plain_path
from pipelines.stage import Context
from pipelines.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

PROBE_ROWS, PROBE_TOKENS = 2, 256
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Largest difference between logits, as a share of the largest logit: merging rounds once per weight, loading
# an adapter again rounds nothing.
_TOLERANCES = {
    ("merged", "fp32"): 1e-4,
    ("merged", "bf16"): 0.1,
    ("adapter", "fp32"): 1e-6,
    ("adapter", "bf16"): 1e-6,
}


def export(stage: ExportStage, context: Context) -> list[dict[str, Any]]:
    """Writes every form of `stage.forms` below `context.output`.

    Returns one `{format, path, largest_difference, largest_logit}` per form.

    Raises:
        EspanError: there is no adapter to export, or what was written gives other logits than the trained
            model.
    """
    source = resolve_model(stage.model, context.inputs)
    if "adapter" in stage.forms and source.adapter is None:
        raise EspanError(f"model '{stage.model}' has no adapter; export it with format: merged")
    written = []
    with (
        _quietly(),
        context.progress.task(f"{context.name}: exporting", total=len(stage.forms), unit="forms") as shown,
    ):
        expected = probe_logits(load_model(source))
        for form in stage.forms:
            place = storage.join(context.output, form)
            with _folder(place) as folder:
                _write(form, source, stage, folder)
                check = _verify(form, source, stage, folder, expected)
                card = model_card(form, source, stage, context, check)
                (folder / "README.md").write_bytes(storage.encode(card))
            written.append(
                {
                    "format": form,
                    "path": place,
                    "largest_difference": check.largest_difference,
                    "largest_logit": check.largest_logit,
                }
            )
            shown.advance(1)
    return written


def probe_logits(model: PreTrainedModel | PeftModel) -> Tensor:
    """Returns the logits of a model for fixed token ids: [PROBE_ROWS, PROBE_TOKENS, vocabulary], float32."""
    vocabulary = model.get_input_embeddings().num_embeddings
    input_ids = torch.randint(
        vocabulary, (PROBE_ROWS, PROBE_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        return model.eval()(input_ids=input_ids, use_cache=False).logits.float()


def _write(form: Form, source: ModelSource, stage: ExportStage, folder: Path) -> None:
    if form == "merged":
        # Merged in float32 and rounded once, whatever the precision of the files.
        load_model(source, merge=True).to(_DTYPES[stage.precision]).save_pretrained(folder)
    else:
        assert source.adapter is not None
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(local_folder(source.adapter) / file, folder / file)
        _name_base(folder / "adapter_config.json", source.base)
    if source.tokenizer is not None:
        load_tokenizer(source.tokenizer).save_pretrained(folder)


def _name_base(path: Path, base: str) -> None:
    """Lets the adapter name its base as the recipe did, not by the place where it lay when it trained."""
    configuration = json.loads(path.read_text(encoding="utf-8"))
    name, revision = base, None
    if not is_place(base) and "@" in base:
        name, revision = split_reference(base)
    configuration |= {"base_model_name_or_path": name, "revision": revision}
    path.write_text(json.dumps(configuration, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _verify(form: Form, source: ModelSource, stage: ExportStage, folder: Path, expected: Tensor) -> Check:
    gc.collect()  # the model that was written is gone before the next is loaded
    if form == "merged":
        model = load_model(ModelSource(str(folder)), dtype=_DTYPES[stage.precision])
    else:
        model = load_model(ModelSource(source.base, adapter=str(folder)))
    plain = model.get_base_model() if form == "adapter" else model
    check = Check(
        largest_difference=float((probe_logits(model) - expected).abs().max()),
        largest_logit=float(expected.abs().max()),
        model_class=type(plain).__name__,
    )
    allowed = _TOLERANCES[form, stage.precision] * check.largest_logit
    if not check.largest_difference <= allowed:
        raise EspanError(
            f"the {form} export does not give the trained model's logits: they differ by "
            f"{check.largest_difference:.2e}, {allowed:.2e} is allowed; nothing was exported"
        )
    return check


@contextmanager
def _folder(target: str) -> Iterator[Path]:
    """Yields a local folder that becomes `target`, whole, when the block ends without an error."""
    parent = None if storage.is_remote(target) else storage.local_path(target).parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=".export-") as scratch:
        folder = plain_path(Path(scratch)) / "model"
        folder.mkdir()
        yield folder
        if parent is None:
            storage.upload_folder(folder, target)
            return
        place = storage.local_path(target)
        if place.exists():  # left by a run that was stopped before the stage was finished
            shutil.rmtree(place)
        folder.rename(place)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps out of the terminal what libraries say while they save and load; no user can act on it."""
    from transformers.utils import logging

    if not torch.cuda.is_available():
        # Saving imports DeepSpeed (through accelerate), which without this warns that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if bars:
            logging.enable_progress_bar()
