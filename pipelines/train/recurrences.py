"""Which backend computes each recurrence of a model, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class Found(NamedTuple):
    """A kind of recurrence in a model.

    Attributes:
        name: of the kind.
        layers: that have it.
        package: whose kernels compute it on a GPU.
        installed: whether that is installed here.
        keeps: what the form in torch keeps for backward.
    """

    name: str
    layers: int
    package: str
    installed: bool
    keeps: str


def recurrences_in(model: nn.Module) -> list[Found]:
    """Returns the kinds of recurrence of a model with an attention attached."""
    from se_model.attach.mixers import recurrences_of

    return [
        Found(kind.name, len(layers), kind.library.package, kind.library.installed(), kind.keeps)
        for kind, layers in recurrences_of(model).items()
    ]


def recurrences_text(found: list[Found], *, gpu: bool) -> str:
    """Returns by which backend they are computed, and what that keeps for backward; empty for none."""
    parts = []
    for each in found:
        layers = "1 layer" if each.layers == 1 else f"{each.layers} layers"
        kernels, keeps = f"kernels of {each.package}", f"torch (chunked), which keeps {each.keeps}"
        parts.append(f"{each.name} in {layers}: {kernels if gpu and each.installed else keeps}")
    missing = sorted({each.package for each in found if not each.installed})
    if gpu and missing:
        parts.append(
            "these kernels are not installed here, and workers without them are slower and need more memory: "
            f"pip install --no-build-isolation {' '.join(missing)}"
        )
    return "; ".join(parts)
