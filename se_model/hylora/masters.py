"""What trains in full is held in float32, and read in the model's dtype.

AdamW moves a weight by about the learning rate. Near 1, where norms start, neighbouring bfloat16 numbers lie
0.004 to 0.008 apart: at a rate of 2e-4 every update is rounded away. peft (0.21) holds low-rank updates in
float32, but copies what is in `modules_to_save` in the model's dtype. Here those copies become masters in
float32. Whoever reads a weight, the layer itself or one that looks into it, gets it rounded to the model's
dtype. So every activation has the dtype that it has in the bare model, a rounded checkpoint computes what
training computed, and gradients reach the master through the rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

_NARROW = (torch.bfloat16, torch.float16)


def hold_in_float32(model: PeftModel) -> None:
    """Make the trained copies in `model` float32 masters, where the model itself is bfloat16 or float16.

    Names, and what is saved, stay those of peft. A weight that ZeRO-3 has split already stays as it is: there
    the optimizer holds the master.
    """
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            for trained in wrapper.modules_to_save.values():
                for name, module in trained.named_modules():
                    if _hold(module, wrapper.original_module.get_submodule(name)):
                        wrapper.__class__ = MasterWrapper


def _hold(module: nn.Module, original: nn.Module) -> bool:
    """Whether there was anything to hold."""
    # The dtypes of the original: a weight that is tied to another may have been widened there already.
    dtypes = {name: weight.dtype for name, weight in original.named_parameters(recurse=False)}
    own = dict(module.named_parameters(recurse=False))
    narrow = tuple(
        name
        for name, weight in own.items()
        if dtypes.get(name) in _NARROW and not hasattr(weight, "ds_id")  # DeepSpeed's mark of a split weight
    )
    if narrow:
        for name in narrow:
            own[name].data = own[name].data.float()
        # Not by assignment to an attribute, which would make it a submodule.
        module.__dict__["_original"] = original
        module.__class__ = _holding(type(module), narrow)
    return bool(narrow)


class MasterWrapper(ModulesToSaveWrapper):
    """peft's wrapper, which gives back a plain module in the model's dtype when the adapter is merged."""

    def unload_and_optionally_merge_module(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in peft. Each weight is rounded once."""
        plain: nn.Module = super().unload_and_optionally_merge_module(*args, **kwargs)
        for module in plain.modules():
            if isinstance(module, Holding):
                module.round_for_good()
        return plain


class Holding(nn.Module):
    """What the classes made by `_holding` put before a layer's own class, `own_class`."""

    own_class: type[nn.Module]
    held: tuple[str, ...]
    _original: nn.Module

    def round_for_good(self) -> None:
        """Become a plain module again, in the dtype of the original."""
        for name in self.held:
            weight = self._parameters[name]
            if weight is not None:
                weight.data = weight.data.to(_dtype_of(self._original, name))
        del self.__dict__["_original"]
        plain: nn.Module = self
        plain.__class__ = self.own_class

    @classmethod
    def over(cls, own_class: type[nn.Module]) -> type[Holding]:
        """The class of modules of another own class that hold the same weights."""
        return _holding(own_class, cls.held)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.own_class, self.held, self.__dict__)


_classes: dict[tuple[type[nn.Module], tuple[str, ...]], type[Holding]] = {}


def _holding(own_class: type[nn.Module], held: tuple[str, ...]) -> type[Holding]:
    """The class of modules of `own_class` that hold these weights; the same one at every call."""
    if (own_class, held) not in _classes:
        bases: tuple[Any, ...] = (Holding, own_class)
        members: dict[str, Any] = {name: _Rounded(name) for name in held}
        members |= {"own_class": own_class, "held": held}
        _classes[own_class, held] = type(own_class.__name__, bases, members)
    return _classes[own_class, held]


def _rebuild(own_class: type[nn.Module], held: tuple[str, ...], state: dict[str, Any]) -> Holding:
    module = Holding.__new__(_holding(own_class, held))
    module.__dict__.update(state)
    return module


class _Rounded:
    """A held weight as it is read: in the dtype that it has in the module that was copied.

    torch puts what is no parameter (a replica's weight, a view of a flat one) under the same name into the
    module's `__dict__`; it is read in the same way.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, module: Holding | None, owner: type[Holding]) -> Any:
        if module is None:
            return self
        if self._name in module.__dict__:
            weight = module.__dict__[self._name]
        elif self._name in module._parameters:
            weight = module._parameters[self._name]
        else:
            raise AttributeError(f"{owner.__name__} has no {self._name}")
        return None if weight is None else weight.to(_dtype_of(module._original, self._name))

    def __set__(self, module: Holding, weight: Any) -> None:
        module.__dict__[self._name] = weight

    def __delete__(self, module: Holding) -> None:
        del module.__dict__[self._name]


def _dtype_of(original: nn.Module, name: str) -> torch.dtype:
    # Not by attribute or key: under ZeRO-3 either would gather a frozen weight that nothing reads.
    weight: Tensor | None = original._parameters.get(name)
    return (original.__dict__[name] if weight is None else weight).dtype
