"""Weights of a new model, drawn module by module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipelines.errors import EspanError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NewWeights:
    """Random weights for `model`, a skeleton, from torch's global generator, in float32.

    Only one module's tensors are in memory at a time. They are drawn in the order in which they are asked
    for; the order of `fill` is the model's.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._drawn: dict[str, Tensor] = {}

    def dtype(self, name: str) -> torch.dtype:
        """float32: what is drawn is rounded afterwards."""
        return torch.float32

    def read(self, name: str, mapped: bool = False) -> Tensor:
        """Returns the tensor `name`, with which the others of its module are drawn; never a map.

        Raises:
            EspanError: the architecture does not say how the tensor begins.
        """
        if name not in self._drawn:
            self._drawn = self._draw(name.rpartition(".")[0])
        return self._drawn.pop(name)

    def _draw(self, module_name: str) -> dict[str, Tensor]:
        module = self._model.get_submodule(module_name)
        empty = dict(module._parameters)
        drawn = {
            leaf: nn.Parameter(torch.full(parameter.shape, torch.nan), requires_grad=False)
            for leaf, parameter in empty.items()
            if parameter is not None
        }
        module._parameters.update(drawn)
        try:
            self._model._init_weights(module)
        finally:
            module._parameters.update(empty)
        for leaf, values in drawn.items():
            if not values.isfinite().all():
                raise EspanError(f"{type(self._model).__name__} does not say how {module_name}.{leaf} begins")
        prefix = f"{module_name}." if module_name else ""
        return {prefix + leaf: values.data for leaf, values in drawn.items()}
