"""Models with their weights: opened first, when nothing is read but headers, then loaded tensor by tensor."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.errors import EspanError
from pipelines.models.configuration import CONFIG_FILE, read_configuration
from pipelines.models.files import local_folder
from pipelines.models.hub import brief
from pipelines.models.weights.adapted import TrainedWeights
from pipelines.models.weights.files import WeightFiles
from pipelines.models.weights.fill import fill
from pipelines.models.weights.merged import MergedWeights
from pipelines.models.weights.new import NewWeights
from pipelines.models.weights.skeleton import skeleton, tie
from pipelines.models.weights.tensors import CheckpointWeights, Misfits, Weights
from pipelines.models.weights.write import NotTensorByTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipelines.models.references import ModelSource

logger = logging.getLogger(__name__)


@dataclass
class Opened:
    """A model with only its shapes and types in memory, and where its weights are.

    Attributes:
        model: its parameters are on the `meta` device.
        weights: under the names that `model` gives them.
    """

    model: PreTrainedModel
    weights: Weights

    def load(self, device: torch.device | str = "cpu") -> PreTrainedModel:
        """Reads the weights and returns the model, in evaluation mode."""
        fill(self.model, self.weights, device)
        return self.model.eval()


def load_model(
    source: ModelSource, dtype: torch.dtype | str = "float32", merge: bool = False
) -> PreTrainedModel:
    """Loads a model to the CPU, in evaluation mode.

    Args:
        source: what `resolve_model` returned.
        dtype: of the weights, as a torch dtype or its name.
        merge: fold the adapter into the weights and return the plain model; otherwise a model with an adapter
            comes back as `peft.PeftModel`.

    Raises:
        EspanError: it is not there or its tensors do not fit its configuration; the message names them.
    """
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    opened = open_base(source, kind)
    if source.adapter is None:
        return opened.load()
    folder = local_folder(source.adapter)
    if merge:
        try:
            weights = MergedWeights(opened.model, opened.weights, folder, kind)
            return Opened(opened.model, weights).load()
        except NotTensorByTensor as reason:
            logger.warning("merged as a whole: %s", reason)
    from se_model import load_adapter

    adapted = load_adapter(opened.load(), folder)
    return (adapted.merge_and_unload() if merge else adapted).eval()


def open_base(source: ModelSource, dtype: torch.dtype) -> Opened:
    """Opens the model that `source` names, without its adapter.

    Raises:
        EspanError: it is not there, or its tensors do not fit its configuration; the message names them.
    """
    if source.new is not None:
        return _open_new(source.new, dtype)
    return open_folder(source.base, local_folder(source.base), dtype)


def open_adapted(source: ModelSource, dtype: torch.dtype) -> Opened:
    """Opens the model that `source` names, its adapter around it if it has one, as peft would load the two.

    Raises:
        NotTensorByTensor: the adapter is of a kind whose tensor names are not known here.
        EspanError: as `open_base`.
    """
    opened = open_base(source, dtype)
    if source.adapter is None:
        return opened
    from peft import PeftConfig, PeftModelForCausalLM

    folder = local_folder(source.adapter)
    MergedWeights(opened.model, opened.weights, folder)
    adapted = PeftModelForCausalLM(
        opened.model, PeftConfig.from_pretrained(str(folder), inference_mode=True), low_cpu_mem_usage=True
    )
    return Opened(adapted.eval(), TrainedWeights(opened.weights, folder))


def open_folder(reference: str, folder: Path, dtype: torch.dtype) -> Opened:
    """Opens the checkpoint in `folder`, which a recipe calls `reference`.

    Raises:
        EspanError: as `open_base`.
    """
    if not (folder / CONFIG_FILE).exists():
        raise EspanError(f"model '{reference}': {folder} holds no {CONFIG_FILE}")
    try:
        with quiet_transformers():
            configuration = read_configuration(folder)
            _refuse_quantized(reference, configuration)
            model = skeleton(configuration, dtype)
            weights = CheckpointWeights(model, WeightFiles(folder))
            _take_generation_settings(model, folder)
            model.name_or_path = str(folder)  # which peft writes into an adapter as its base
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise EspanError(f"model '{reference}' cannot be loaded: {brief(error)}") from error
    _refuse_misfits(reference, model, weights.misfits)
    return Opened(model, weights)


def _open_new(configuration: Mapping[str, Any], dtype: torch.dtype) -> Opened:
    from se_model.hybrid import Mamba2HybridConfig

    try:
        model = skeleton(Mamba2HybridConfig(**configuration), dtype)
    except (TypeError, ValueError) as error:
        raise EspanError(f"new model: {brief(error)}") from error
    tie(model, missing=set(model.all_tied_weights_keys))
    return Opened(model, NewWeights(model))


def _refuse_quantized(reference: str, configuration: Any) -> None:
    if getattr(configuration, "quantization_config", None):
        raise EspanError(
            f"model '{reference}' is quantized (quantization_config in its {CONFIG_FILE}), and such weights "
            "cannot be loaded here; use the checkpoint that it was made from"
        )


def _refuse_misfits(reference: str, model: PreTrainedModel, misfits: Misfits) -> None:
    wrong = [
        f"{name} has shape {list(found)} instead of {list(expected)}"
        for name, found, expected in sorted(misfits.misshapen)
    ]
    wrong += [f"{name} is missing" for name in sorted(misfits.missing)]
    if type(model).__module__.startswith("se_model."):
        # transformers' checkpoints bring along what other heads and releases need.
        wrong += [f"{name} belongs to no part of the model" for name in sorted(misfits.unexpected)]
        wrong += [f"{one} differs from {two}, and {CONFIG_FILE} ties them" for one, two in misfits.untied]
    if wrong:
        what = brief("\n".join(wrong))
        raise EspanError(f"model '{reference}': weights do not fit {CONFIG_FILE}: {what}")


def _take_generation_settings(model: PreTrainedModel, folder: Path) -> None:
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers from writing to the terminal what a user cannot act on."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
