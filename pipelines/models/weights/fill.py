"""Gives a skeleton's parameters their values, one tensor at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from pipelines.models.weights.tensors import Weights

Draw = Callable[[nn.Module], None]
"""Draws new values for a module's own parameters, which have memory by then."""


@dataclass(frozen=True)
class Holder:
    """A module and the name under which it holds a parameter."""

    module: nn.Module
    leaf: str


@dataclass(frozen=True)
class Empty:
    """A parameter without memory, and everyone who holds it: a tied weight has several holders."""

    parameter: nn.Parameter
    holders: tuple[Holder, ...]

    def put(self, values: nn.Parameter) -> None:
        """Puts `values` in the parameter's place, everywhere."""
        values.requires_grad_(self.parameter.requires_grad)
        for holder in self.holders:
            holder.module._parameters[holder.leaf] = values


def fill(model: nn.Module, weights: Weights, device: torch.device | str = "cpu") -> None:
    """Reads every parameter of `model`, a skeleton, to `device`, in the type that it has in the skeleton.

    Beside the model itself one tensor is in memory at a time. On a CPU, weights that are stored in the type
    asked for are not copied: they lie in a map of their file.
    """
    for name, empty in empties(model):
        dtype = empty.parameter.dtype
        mapped = torch.device(device).type == "cpu" and weights.dtype(name) == dtype
        tensor = weights.read(name, mapped).to(device, dtype)
        empty.put(nn.Parameter(tensor, requires_grad=False))
    fill_buffers(model, weights)


def fill_buffers(model: nn.Module, weights: Weights) -> None:
    """Reads the buffers that are part of a checkpoint; the others were computed with the skeleton."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in parameters:
            with torch.no_grad():
                tensor.copy_(weights.read(name))


def empties(model: nn.Module) -> Iterator[tuple[str, Empty]]:
    """Yields (name, parameter) for every parameter without memory, tied ones once, in the model's order.

    The caller may fill what it was given before it asks for the next.
    """
    holders: dict[int, list[Holder]] = defaultdict(list)
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                holders[id(parameter)].append(Holder(module, leaf))
    for name, parameter in [each for each in model.named_parameters() if each[1].is_meta]:
        yield name, Empty(parameter, tuple(holders[id(parameter)]))
