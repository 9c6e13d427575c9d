"""Bytes alive while a model runs without memory: its tensors lie on the `meta` device.

Every operation's results are counted when they appear and when they go, so what autograd saves, what is
computed again, gradients on their way and temporaries between two operations all show as they would be.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

META = torch.device("meta")
_LARGEST_KNOWN = 1 << 20
"""Integer tensors of up to so many numbers keep their values."""


_MOST_OPERATIONS = 30_000
"""A layer that works token by token in Python would be counted for minutes."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every tensor on `meta` that operations within make, as long as it lives.

    Integers and truth values that follow from numbers alone (positions, bounds of documents, masks) keep
    their values beside the tensor without memory, so that code may ask for them.

    Attributes:
        level: bytes alive.
        peak: the most since `restart_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.level = 0
        self.peak = 0
        self._operations = 0
        self._storages = WeakIdKeyDictionary()
        self._values = WeakIdKeyDictionary()

    def restart_peak(self) -> None:
        """Forgets peaks so far."""
        self.peak = self.level

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Counts nothing for these, nor for what shares their memory."""
        for tensor in tensors:
            self._storages[tensor.untyped_storage()] = 0

    def know(self, values: Tensor) -> Tensor:
        """Returns a tensor on `meta` whose values are known to be those of `values`, on the CPU."""
        tensor = torch.empty_like(values, device=META)
        self._values[tensor] = values
        return tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._operations += 1
        if self._operations > _MOST_OPERATIONS:
            raise RuntimeError(f"more than {_MOST_OPERATIONS:,} operations: it works token by token")
        given = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        if all(tensor.device != META for tensor in tensors) and given.get("device") != META:
            return func(*args, **given)
        if all(tensor.device != META or tensor in self._values for tensor in tensors):
            return self._with_values(func, args, given)
        return self._count(func(*args, **given))

    def _with_values(self, func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """Runs an operation on known values, and makes the results known where they are whole numbers."""
        real_args, real_given = tree_map_only(Tensor, self._value_of, (args, given))
        to_cpu = given.get("device") is not None and given["device"] != META
        if "device" in real_given:
            real_given["device"] = torch.device("cpu")
        real = func(*real_args, **real_given)
        if to_cpu:
            return real
        if func._schema.is_mutable:
            return self._count(func(*args, **given))
        return self._count(tree_map_only(Tensor, self._without_memory, real))

    def _without_memory(self, real: Tensor) -> Tensor:
        whole = not (real.is_floating_point() or real.is_complex())
        if whole and real.numel() <= _LARGEST_KNOWN:
            return self.know(real)
        return torch.empty_like(real, device=META)

    def _value_of(self, tensor: Tensor) -> Tensor:
        value: Tensor = self._values[tensor] if tensor.device == META else tensor
        return value

    def _count(self, results: Any) -> Any:
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.device == META:
                storage = result.untyped_storage()
                if storage not in self._storages:
                    size = storage.nbytes()
                    self._storages[storage] = size
                    weakref.finalize(storage, self._release, size)
                    self.level += size
                    self.peak = max(self.peak, self.level)
        return results

    def _release(self, size: int) -> None:
        self.level -= size
