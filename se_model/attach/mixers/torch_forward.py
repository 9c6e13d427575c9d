"""The forward that a layer of transformers has, computed by PyTorch where a package's kernels took its place.

transformers (5.23, `use_kernel_func_from_hub_with_fallback` in integrations/hub_kernels.py) decides once for
a process what a layer's forward calls: the kernels of any package that it can import. Packages whose kernels
are for CUDA can be imported on nodes without a GPU too, and fail there when they are called. No layer holds
these functions, they are globals of its model's file. So a forward is made here of the same code, which finds
PyTorch's functions under their names. This file can go once transformers looks at the tensors' device.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import lru_cache
from types import CellType, FunctionType
from typing import Any

from torch import Tensor
from transformers.integrations import hub_kernels


@lru_cache(maxsize=64)
def torch_forward(forward: FunctionType) -> Callable[..., Tensor]:
    """The same function of a layer and its arguments, by PyTorch alone.

    forward: of a class of transformers.
    """
    inner = getattr(forward, "__wrapped__", None)
    if inner is not None:  # a decorator's, which goes around what is made of the function inside
        closure = tuple(
            CellType(torch_forward(inner)) if cell.cell_contents is inner else cell
            for cell in forward.__closure__ or ()
        )
        return _made_of(forward, forward.__globals__, closure)
    names = dict(forward.__globals__)
    for name in forward.__code__.co_names:
        if _may_be_kernels(names.get(name)):
            names[name] = _by_torch(names[name])
    return _made_of(forward, names, forward.__closure__)


def _made_of(
    function: FunctionType, names: dict[str, Any], closure: tuple[CellType, ...] | None
) -> FunctionType:
    made = FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _may_be_kernels(found: object) -> bool:
    return (
        isinstance(found, FunctionType)
        and found.__globals__ is vars(hub_kernels)
        and hasattr(found, "__wrapped__")
    )


def _by_torch(function: Any) -> Callable[..., Any]:
    """What transformers wrapped; like transformers, it leaves out what the function has no name for."""
    torch_function = function.__wrapped__
    parameters = inspect.signature(torch_function).parameters

    @functools.wraps(torch_function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return torch_function(*args, **{name: kwargs[name] for name in kwargs if name in parameters})

    return call
