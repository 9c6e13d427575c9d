"""The tensors of a model that an adapter was put around: new low-rank updates, trained copies of the rest."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipelines.weights.fill import Empty, empties
from pipelines.weights.tensors import Weights

if TYPE_CHECKING:
    from peft import PeftModel

_ADDED = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)(?=\.)")
"""What peft (0.21) puts into the names of a model's own tensors and of the copies of them that train."""

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
