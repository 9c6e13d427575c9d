"""Which layers of transformers are given which class, and how they get their own back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from se_model.attach.marks import MARK, Attachment
from se_model.attach.mixers import gated_delta, mamba1, mamba2, short_convolution
from se_model.attach.mixers.mixer import AttachedMixer
from se_model.recurrence import CONVOLUTION, CausalConv1d, Recurrence

_ATTACHED: tuple[type[nn.Module], ...] = (
    *gated_delta.LAYERS,
    *mamba1.LAYERS,
    *mamba2.LAYERS,
    *short_convolution.LAYERS,
)
# Each is derived from the class whose place it takes, and before it from its kind's.
_ORIGINALS: dict[type[nn.Module], type[nn.Module]] = {
    attached: attached.__bases__[-1] for attached in _ATTACHED
}
_REPLACEMENTS = {original: attached for attached, original in _ORIGINALS.items()}


def replace_mixers(model: nn.Module, attachment: Attachment) -> None:
    """Give every recurrent layer that this package knows its class of this package; others stay as they are.

    A class derived from a known one is another: its forward may be, too.
    """
    for module in model.modules():
        if type(module) in _REPLACEMENTS:
            module.__class__ = _REPLACEMENTS[type(module)]
        if isinstance(module, AttachedMixer):
            setattr(module, MARK, attachment)
            for convolution in _convolutions(module, nn.Conv1d):
                convolution.__class__ = _in_place_of(type(convolution), CausalConv1d)


def restore_mixers(model: nn.Module) -> None:
    """Undo `replace_mixers`."""
    for module in model.modules():
        if isinstance(module, AttachedMixer):
            delattr(module, MARK)
            for convolution in _convolutions(module, CausalConv1d):
                convolution.__class__ = _in_place_of(type(convolution), nn.Conv1d)
        if type(module) in _ORIGINALS:
            module.__class__ = _ORIGINALS[type(module)]


def choose_backends(model: nn.Module, name: str) -> None:
    """Have the recurrences of all layers computed by the backend of this name, or "auto"."""
    layer: Any
    for layer in model.modules():
        if hasattr(type(layer), "recurrence_backend"):
            layer.recurrence_backend = name


def recurrences_of(model: nn.Module) -> dict[Recurrence, list[str]]:
    """The kinds of recurrence in an attached model, and the names of the layers that have each."""
    found: dict[Recurrence, list[str]] = {}
    for name, module in model.named_modules():
        for kind in getattr(type(module), "recurrences", ()):
            found.setdefault(kind, []).append(name)
    return found


def library_limit(model: nn.Module, kind: Recurrence) -> str | None:
    """Which size of a layer the kernels of a kind do not serve, in words; None if they serve all layers."""
    names = [name for name, _, _ in kind.library.limits]
    for layer in recurrences_of(model).get(kind, ()):
        for sizes in _sizes(model.get_submodule(layer), kind):
            if limit := kind.library.limit({name: getattr(sizes, name) for name in names}):
                return f"{limit} ({layer})"
    return None


def _sizes(layer: Any, kind: Recurrence) -> list[Any]:
    """What has a layer's sizes as attributes, by the names that a kind's limits give them."""
    if kind is not CONVOLUTION:
        return [layer.sizes]
    return [each for each in layer.modules() if isinstance(each, CausalConv1d)]


def _convolutions(mixer: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    """The convolution and its trained copies, which take a state and documents as `CausalConv1d`.

    transformers reads a convolution's weight and never calls it, so the layer's own forward stays right.
    """
    return (module for module in mixer.modules() if getattr(type(module), "own_class", type(module)) is kind)


def _in_place_of(present: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    """The class to give instead; one that was made over a convolution's own (`hylora/masters.py`) says it."""
    made: type[nn.Module] = present.over(kind) if hasattr(present, "over") else kind
    return made
