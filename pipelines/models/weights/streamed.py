"""A forward pass of a model that is larger than memory: each layer is read when it runs, and dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelines.models.weights.fill import fill_buffers
from pipelines.models.weights.tensors import Weights
from pipelines.models.weights.write import NotTensorByTensor


def streamed_logits(model: nn.Module, weights: Weights, input_ids: Tensor) -> Tensor:
    """Returns the logits of `model`, a skeleton, for `input_ids: [B, L]`: [B, L, vocabulary], float32.

    One layer's weights are in memory at a time, in the type that the skeleton has them in.

    Raises:
        NotTensorByTensor: the model uses weights outside of the layer that holds them.
    """
    fill_buffers(model, weights)
    with torch.inference_mode(), _read_when_run(model, weights):
        try:
            logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            raise NotTensorByTensor(f"{_name(model)} uses weights outside of their layer: {error}") from error
    if logits.is_meta:
        raise NotTensorByTensor(f"{_name(model)} uses weights outside of their layer")
    return logits.float()


Parameters = list[tuple[nn.Module, str, nn.Parameter]]


class Unit(NamedTuple):
    """What is read at once: a layer as a whole, or of a module beside the layers its own parameters.

    A layer's children would be too small: a state-space layer reads its convolution's weight itself.
    """

    module: nn.Module
    whole: bool

    def parameters(self) -> Parameters:
        """Returns (holder, name there, parameter) for all that is read."""
        holders = self.module.modules() if self.whole else [self.module]
        return [
            (holder, leaf, parameter)
            for holder in holders
            for leaf, parameter in holder._parameters.items()
            if parameter is not None
        ]


def units(model: nn.Module) -> Iterator[Unit]:
    """Yields all that a forward pass reads, each parameter in one unit or, if shared, in several."""
    inside: set[int] = set()
    for module in model.modules():
        if id(module) in inside:
            continue
        if isinstance(module, nn.ModuleList):
            for layer in module:
                inside.update(id(each) for each in layer.modules())
                yield Unit(layer, whole=True)
        elif any(True for _ in module.parameters(recurse=False)):
            yield Unit(module, whole=False)


@contextmanager
def _read_when_run(model: nn.Module, weights: Weights) -> Iterator[None]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hooks = []
    for unit in units(model):
        empty = unit.parameters()
        read = partial(_read, empty, names, weights)
        hooks.append(unit.module.register_forward_pre_hook(read))
        hooks.append(unit.module.register_forward_hook(partial(_drop, empty), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _read(empty: Parameters, names: dict[int, str], weights: Weights, *_: Any) -> None:
    filled: dict[int, nn.Parameter] = {}
    for holder, leaf, parameter in empty:
        if id(parameter) not in filled:
            values = weights.read(names[id(parameter)], mapped=True).to(parameter.dtype)
            filled[id(parameter)] = nn.Parameter(values, requires_grad=False)
        holder._parameters[leaf] = filled[id(parameter)]


def _drop(empty: Parameters, *_: Any) -> None:
    for holder, leaf, parameter in empty:
        holder._parameters[leaf] = parameter


def _name(model: nn.Module) -> str:
    inside = getattr(model, "get_base_model", None)
    return type(model if inside is None else inside()).__name__
