"""Writes a model's files and proves them: loaded again, they must give the trained model's logits."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.export.card import Proof, model_card
from pipelines.export.memory import PROBE_ROWS, PROBE_TOKENS
from pipelines.models.bos import own_bos
from pipelines.models.files import is_place, local_folder
from pipelines.models.loading import Opened, load_model, open_adapted, open_base
from pipelines.models.merging import stored_dtype, write_merged
from pipelines.models.references import ModelSource, resolve_model
from pipelines.models.tokenizers import load_tokenizer
from pipelines.models.weights.streamed import streamed_logits
from pipelines.recipe.keys.export import ExportKeys, Form
from pipelines.recipe.references import split_reference
from pipelines.system import storage
from pipelines.system.plain_path import plain_path
from pipelines.system.precision import torch_dtype

# Largest difference between logits, as a share of the largest logit: merging rounds once per weight, loading
# an adapter again rounds nothing. The arithmetic is float32 on either side.
_MERGED_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4}
_ROUNDED_TOLERANCE, _ADAPTER_TOLERANCE = 0.1, 1e-6


def export(stage: ExportKeys, context: Context, whole: bool = False) -> list[dict[str, Any]]:
    """Writes every form of `stage.forms` below `context.output`.

    Weights are read, merged, written and proved with one layer in memory at a time, or with the `whole` model
    there. Returns one `{format, path, precision, largest_difference, largest_logit}` per form.

    Raises:
        NotTensorByTensor: it can only be done with `whole`.
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
        expected = probe_logits(load_model(source) if whole else open_adapted(source, torch.float32))
        dtype = torch_dtype(stage.precision) if stage.precision else stored_dtype(source)
        write = partial(_write, whole=True) if whole else _write
        for form in stage.forms:
            place = storage.join(context.output, form)
            with _folder(place) as folder:
                write(form, source, stage, folder)
                check = _verify(form, source, dtype, folder, expected, whole)
                beginning = None if source.tokenizer is None else _beginning(folder)
                card = model_card(form, source, stage, context, check, beginning)
                (folder / "README.md").write_bytes(storage.encode(card))
            written.append(
                {
                    "format": form,
                    "path": place,
                    "precision": str(dtype).removeprefix("torch."),
                    "largest_difference": check.largest_difference,
                    "largest_logit": check.largest_logit,
                }
            )
            shown.advance(1)
    return written


def probe_logits(model: Any) -> Tensor:
    """Returns the logits of a model for fixed token ids: [PROBE_ROWS, PROBE_TOKENS, vocabulary], float32.

    Args:
        model: a transformers or peft model, or an `Opened` one, of which one layer is loaded at a time.
    """
    opened = model if isinstance(model, Opened) else None
    if opened is not None:
        model = opened.model
    vocabulary = model.get_input_embeddings().num_embeddings
    input_ids = torch.randint(
        vocabulary, (PROBE_ROWS, PROBE_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    rows = input_ids.split(1)  # one after the other: what a layer computes of a row may exceed its weights
    if opened is not None:
        return torch.cat([streamed_logits(opened.model, opened.weights, row) for row in rows])
    with torch.inference_mode():
        return torch.cat([model.eval()(input_ids=row, use_cache=False).logits.float() for row in rows])


def _write(form: Form, source: ModelSource, stage: ExportKeys, folder: Path, whole: bool = False) -> None:
    if form == "merged":
        write_merged(source, folder, torch_dtype(stage.precision) if stage.precision else None, whole)
    else:
        assert source.adapter is not None
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(local_folder(source.adapter) / file, folder / file)
        _name_base(folder / "adapter_config.json", source.base)
    if source.tokenizer is not None:
        load_tokenizer(source.tokenizer).save_pretrained(folder)


def _beginning(folder: Path) -> str:
    """Returns the token that the tokenizer in `folder` puts before a text; empty if it puts none there."""
    tokenizer = load_tokenizer(str(folder))
    bos = own_bos(tokenizer)
    return "" if bos is None else str(tokenizer.convert_ids_to_tokens(bos))


def _name_base(path: Path, base: str) -> None:
    """Makes the adapter name its base as the recipe did, not by its path during training."""
    configuration = json.loads(path.read_text(encoding="utf-8"))
    name, revision = base, None
    if not is_place(base) and "@" in base:
        name, revision = split_reference(base)
    configuration |= {"base_model_name_or_path": name, "revision": revision}
    path.write_text(json.dumps(configuration, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _verify(
    form: Form, source: ModelSource, dtype: torch.dtype, folder: Path, expected: Tensor, whole: bool
) -> Proof:
    written = ModelSource(str(folder)) if form == "merged" else ModelSource(source.base, adapter=str(folder))
    again = load_model(written) if whole else open_adapted(written, torch.float32)
    check = Proof(
        largest_difference=float((probe_logits(again) - expected).abs().max()),
        largest_logit=float(expected.abs().max()),
        model_class=type(open_base(written, torch.float32).model).__name__,
    )
    merged = _MERGED_TOLERANCES.get(dtype, _ROUNDED_TOLERANCE)
    allowed = (merged if form == "merged" else _ADAPTER_TOLERANCE) * check.largest_logit
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
