"""torch's own functions, as kernels keep memory for them: on the `meta` device torch takes them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from se_model.span.outline import attend_densely


class KernelFunctions(TorchFunctionMode):
    """Makes torch's functions on `meta` keep what the kernels of a kind of device keep.

    Attention keeps its inputs, output and one number for each query, where torch would write out its weights.
    On a GPU root-mean-square normalisation is one kernel, which keeps its input and one number for each row;
    on a CPU torch takes it apart there too.
    """

    def __init__(self, gpu: bool) -> None:
        super().__init__()
        self._functions: dict[Any, Callable[..., Tensor]] = {F.scaled_dot_product_attention: _attention}
        # Products of experts; torch knows their shapes in bfloat16 alone.
        self._functions |= {
            getattr(place, name): _grouped_product
            for place, name in ((F, "grouped_mm"), (torch, "_grouped_mm"))
            if hasattr(place, name)
        }
        if gpu:
            self._functions |= {F.rms_norm: _rms_norm, torch.rms_norm: _rms_norm}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._functions.get(func, func)(*args, **(kwargs or {}))


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return attend_densely(query, key, value)


def _grouped_product(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    product: Tensor = _GroupedProduct.apply(input, weight)
    return product


class _GroupedProduct(torch.autograd.Function):
    """[N, E] with [experts, E, F]: [N, F]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_empty(*x.shape[:-1], weight.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    normed: Tensor = _RMSNorm.apply(input, weight, len(tuple(normalized_shape)))
    return normed


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, dimensions: int) -> Tensor:
        normaliser = torch.empty(x.shape[:-dimensions], dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, normaliser, *(() if weight is None else (weight,)))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, _, *weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight[0]) if weight else None, None
