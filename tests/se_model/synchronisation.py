"""Finds where code asks a device for a number, which waits for everything the device was given before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that give a number, or a tensor whose shape depends on numbers.
_OPERATIONS = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# Methods that read a tensor on the CPU without any operation.
_METHODS = {"tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__", "__index__", "__contains__"}


class Watch:
    """Raises at every synchronisation in its blocks but those in a block of ``ignored``."""

    def __init__(self) -> None:
        self._ignoring = 0

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raises AssertionError where code waits for a device."""
        with _Functions(self), _Operations(self):
            yield

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Lets code wait, as exchanges whose size depends on the data must."""
        self._ignoring += 1
        try:
            yield
        finally:
            self._ignoring -= 1

    @contextmanager
    def in_layers(self, layers: nn.ModuleList) -> Iterator[None]:
        """Raises inside the forward of ``layers``, and not between them."""
        with ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(self._around(layer))
            yield

    @contextmanager
    def _around(self, layer: nn.Module) -> Iterator[None]:
        blocks: list[Any] = []

        def enter(*_: Any) -> None:
            blocks.append(self.raising())
            blocks[-1].__enter__()

        def leave(*_: Any) -> None:
            blocks.pop().__exit__(None, None, None)

        handles = layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def found(self, what: str) -> None:
        if not self._ignoring:
            raise AssertionError(f"{what} waits for the device")


class _Operations(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        by_truth = name in _INDEXING and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        )
        # Without the size of its output, this one counts on the device.
        counts = func.name() == "aten::repeat_interleave.Tensor" and not (kwargs or {}).get("output_size")
        if name in _OPERATIONS or by_truth or counts:
            self.watch.found(func.name())
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _METHODS:
            self.watch.found(func.__name__)
        return func(*args, **(kwargs or {}))
