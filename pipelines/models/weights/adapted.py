"""The tensors of a model that an adapter was put around: new low-rank updates, trained copies of the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipelines.errors import EspanError
from pipelines.models.weights.files import WeightFiles
from pipelines.models.weights.fill import Empty, empties
from pipelines.models.weights.merged import TENSORS
from pipelines.models.weights.tensors import Weights

if TYPE_CHECKING:
    from peft import PeftModel

_ADDED = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)(?=\.)")
"""What peft (0.21) puts into the names of a model's own tensors and of the copies of them that train."""

_OF_ADAPTER = re.compile(r"(\.lora_[AB])\.[^.]+(?=\.weight$)|\.modules_to_save\.[^.]+(?=\.)")

_PREFIX = "base_model.model."


class AdaptedWeights:
    """`weights` by the names that they have inside a `PeftModel`; trained copies start as the original."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def dtype(self, name: str) -> torch.dtype:
        """Returns the type of a tensor as it is stored."""
        return self._weights.dtype(bare_name(name))

    def read(self, name: str, mapped: bool = False) -> Tensor:
        """Returns a tensor on the CPU; see `WeightFiles.read` for `mapped`."""
        return self._weights.read(bare_name(name), mapped)


def bare_name(name: str) -> str:
    """Returns the name that a tensor inside a `PeftModel` has in the model itself."""
    return _ADDED.sub("", name.removeprefix(_PREFIX))


class TrainedWeights:
    """`base` inside a `PeftModel` whose adapter was trained, and lies in `folder`.

    Raises:
        EspanError: on reading a tensor that the adapter's files lack.
    """

    def __init__(self, base: Weights, folder: Path) -> None:
        self._base = AdaptedWeights(base)
        self._files = WeightFiles(folder, TENSORS)

    def dtype(self, name: str) -> torch.dtype:
        """Returns the type of a tensor as it is stored."""
        key = self._key(name)
        return self._base.dtype(name) if key is None else self._files.tensors[key].dtype

    def read(self, name: str, mapped: bool = False) -> Tensor:
        """Returns a tensor on the CPU; see `WeightFiles.read` for `mapped`."""
        key = self._key(name)
        return self._base.read(name, mapped) if key is None else self._files.read(key, mapped)

    def _key(self, name: str) -> str | None:
        """Returns what peft (0.21) calls the tensor in an adapter's file; None for one of the base's."""
        key = _OF_ADAPTER.sub(lambda found: found[1] or "", name)
        if key == name:
            return None
        if key not in self._files.tensors:
            raise EspanError(f"{self._files.folder} lacks {key}; it was not written whole")
        return key


def draw_updates(model: PeftModel) -> None:
    """Draws new low-rank updates, as peft does, in the model's order, from torch's global generator.

    peft drew them when it made the adapter, and lost them: what it adds to a weight on `meta` it moves there.
    """
    from peft.tuners.lora import LoraLayer

    empty = {id(each.parameter): each for _, each in empties(model)}
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.active_adapters:
                _draw(layer, adapter, empty)


def _draw(layer: Any, adapter: str, empty: dict[int, Empty]) -> None:
    drawn = False
    for matrices in (layer.lora_A, layer.lora_B):
        weight = matrices[adapter].weight
        if weight.is_meta:  # else a layer that shares the update had its turn
            empty[id(weight)].put(nn.Parameter(torch.empty_like(weight, device="cpu"), requires_grad=False))
            drawn = True
    if drawn:
        layer.reset_lora_parameters(adapter, init_lora_weights=True)
