"""A base model's tensors with an adapter folded in, one tensor at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipelines.errors import EspanError
from pipelines.models.weights.files import WeightFiles
from pipelines.models.weights.tensors import Weights
from pipelines.models.weights.write import NotTensorByTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIGURATION = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_UPDATE = re.compile(r"\.lora_[AB]\.weight$")

# What peft (0.21) calls LoRA and merges in another way than base + scale * B A.
_OTHER_MERGES = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "megatron_config",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)


class MergedWeights:
    """`base` with the adapter in `folder` folded in, in float32, each tensor rounded once.

    A low-rank update becomes base + scale * B A, as in peft's `merge_and_unload`; a module that was trained
    in full takes the place of the base's. Where layers share a weight, so do its updates (as in
    `se_model.load_adapter`).

    Args:
        model: the skeleton whose tensors `base` gives.
        base: as stored.
        folder: a PEFT adapter's.
        rounded_to: the type of the tensors that the adapter changes; by default that of the base's.

    Raises:
        NotTensorByTensor: the adapter is of a kind that merges otherwise; the message says which.
        EspanError: it does not fit the model.
    """

    def __init__(
        self, model: PreTrainedModel, base: Weights, folder: Path, rounded_to: torch.dtype | None = None
    ) -> None:
        self._base = base
        self._rounded_to = rounded_to
        self._folder = folder
        self._files = _adapter_files(folder)
        self._configuration = _configuration(folder)
        self._names = _names_alike(model)
        self._sources: dict[str, str] = {}
        self._find_sources(dict(model.named_parameters(remove_duplicate=False)))

    def dtype(self, name: str) -> torch.dtype:
        """Returns the type of what `read` returns."""
        changed = self._source(name) is not None
        return self._rounded_to if changed and self._rounded_to else self._base.dtype(name)

    def read(self, name: str, mapped: bool = False) -> Tensor:
        """Returns a tensor of the merged model on the CPU; only what the adapter does not change is a map."""
        source, dtype = self._source(name), self.dtype(name)
        if source is None:
            return self._base.read(name, mapped)
        if not _UPDATE.search(source):
            return self._files.read(source).to(dtype)
        merged = self._base.read(name).to(torch.float32)
        merged += self._update(source)
        return merged.to(dtype)

    def _source(self, name: str) -> str | None:
        """Returns the adapter's tensor that changes `name`, or a name that it is tied to."""
        return next((self._sources[each] for each in self._names[name] if each in self._sources), None)

    def _update(self, source: str) -> Tensor:
        module = source.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        a, b = (self._files.read(_UPDATE.sub(f".lora_{each}.weight", source)).float() for each in "AB")
        update = b @ a
        if self._configuration.get("fan_in_fan_out"):
            update = update.T
        return update * self._scale(module, rank=a.shape[0])

    def _scale(self, module: str, rank: int) -> float:
        alpha = _for_module(
            module, self._configuration.get("alpha_pattern"), self._configuration["lora_alpha"]
        )
        return float(alpha / (math.sqrt(rank) if self._configuration.get("use_rslora") else rank))

    def _find_sources(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for key, info in self._files.tensors.items():
            bare = key.removeprefix(_PREFIX)
            if bare.endswith(".lora_B.weight"):
                continue
            if bare.endswith(".lora_A.weight"):
                bare = bare.removesuffix(".lora_A.weight") + ".weight"
                if bare in parameters and parameters[bare].ndim != 2:
                    raise NotTensorByTensor(f"{self._folder} updates {bare}, which is not a matrix")
            elif bare in parameters and tuple(parameters[bare].shape) != info.shape:
                raise EspanError(
                    f"{self._folder}: {key} is {list(info.shape)}, and the model's tensor is "
                    f"{list(parameters[bare].shape)}"
                )
            if bare not in parameters:
                raise NotTensorByTensor(f"{self._folder} holds {key}, which is no weight of the model itself")
            self._sources[bare] = key
        if not self._sources:
            raise EspanError(f"{self._folder}: {TENSORS} holds no tensors")
        for names in {id(alike): alike for alike in self._names.values()}.values():
            self._check_shared(names)

    def _check_shared(self, names: tuple[str, ...]) -> None:
        """Refuses to merge where one weight is used under several names, and these would come to differ."""
        changed = [name for name in names if name in self._sources]
        if not changed or len(names) == 1:
            return
        first = self._sources[changed[0]]
        updated = _UPDATE.search(first) is not None
        if len(changed) < len(names) and (updated or not self._configuration.get("ensure_weight_tying")):
            left = next(name for name in names if name not in changed)
            raise NotTensorByTensor(
                f"{self._folder} trained {changed[0]} apart from {left}, whose weight it is too"
            )
        for name in changed[1:]:
            for one, other in zip(_matrices(first), _matrices(self._sources[name]), strict=True):
                if not self._files.same(one, other):
                    raise EspanError(
                        f"{self._folder} has different updates for uses of one shared weight, "
                        f"{changed[0]} and {name}; it cannot be merged"
                    )


def _matrices(source: str) -> tuple[str, ...]:
    if not _UPDATE.search(source):
        return (source,)
    return tuple(_UPDATE.sub(f".lora_{each}.weight", source) for each in "AB")


def _names_alike(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Returns, for every name of a tensor, all names of it; tied and shared weights have several."""
    alike: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        alike.setdefault(id(parameter), []).append(name)
    found = {name: names for each in alike.values() for names in [tuple(each)] for name in each}
    return found | {name: (name,) for name in model.state_dict() if name not in found}


def _configuration(folder: Path) -> dict[str, Any]:
    configuration: dict[str, Any] = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
    kind = configuration.get("peft_type")
    if kind != "LORA":
        raise NotTensorByTensor(f"{folder} is a PEFT adapter of type {kind}, not LORA")
    others = [key for key in _OTHER_MERGES if configuration.get(key)]
    if configuration.get("bias", "none") != "none":
        others.append("bias")
    if others:
        raise NotTensorByTensor(f"{folder}/{CONFIGURATION} sets {others[0]}")
    return configuration


def _adapter_files(folder: Path) -> WeightFiles:
    if not (folder / TENSORS).is_file():
        raise NotTensorByTensor(f"{folder} holds no {TENSORS}")
    return WeightFiles(folder, TENSORS)


def _for_module(module: str, patterns: Mapping[str, float] | None, default: float) -> float:
    """Returns a module's own setting, by the rule of peft: a pattern fits the end of the module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
