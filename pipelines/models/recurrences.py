"""Which backend computes each recurrence of a model, in words, and whether the one that is asked for can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipelines.errors import EspanError
from pipelines.models.fitting import attention_config

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

    from pipelines.models.configuration import Described
    from pipelines.recipe.keys.attention import Attention

KEY = "recurrence"


class Found(NamedTuple):
    """A kind of recurrence in a model.

    Attributes:
        name: of the kind.
        layers: that have it.
        package: whose kernels compute it on a GPU.
        installed: whether that is installed here.
        keeps: what the form in torch keeps for backward.
        limit: why the kernels do not serve the model; None if they do.
    """

    name: str
    layers: int
    package: str
    installed: bool
    keeps: str
    limit: str | None = None


def recurrences_in(model: nn.Module) -> list[Found]:
    """Returns the kinds of recurrence of a model with an attention attached."""
    from se_model.attach.mixers import library_limit, recurrences_of

    return [
        Found(
            kind.name,
            len(layers),
            kind.library.package,
            kind.library.installed(),
            kind.keeps,
            library_limit(model, kind),
        )
        for kind, layers in recurrences_of(model).items()
    ]


def planned_recurrences(model: Described, attention: Attention) -> list[Found]:
    """Returns the kinds of recurrence of a model that is not loaded."""

    def find(configuration: PreTrainedConfig) -> list[Found]:
        from pipelines.models.architecture import attached_skeleton

        return recurrences_in(attached_skeleton(configuration, attention_config(attention, 0)))

    found = model.remembered("recurrences", attention.model_dump(mode="json"), find)
    return [Found(*each) for each in found]


def recurrences_text(found: Sequence[Found], wish: str, *, gpu: bool) -> str:
    """Returns by which backend they are computed, and what that keeps for backward; empty for none.

    wish: the key `recurrence`; gpu: whether the workers compute on GPUs.
    """
    parts = []
    for each in found:
        layers = "1 layer" if each.layers == 1 else f"{each.layers} layers"
        parts.append(f"{each.name} in {layers}: {_backend_text(each, wish, gpu)}")
    missing = sorted({each.package for each in found if not each.installed and each.limit is None})
    if gpu and missing and wish in ("auto", "library"):
        without = "are slower and need more memory" if wish == "auto" else "refuse to start"
        parts.append(
            f"these kernels are not installed here, and workers without them {without}: "
            f"pip install --no-build-isolation {' '.join(missing)}"
        )
    return "; ".join(parts)


def refusal_of_wish(found: Sequence[Found], wish: str, *, gpu: bool, here: bool) -> str | None:
    """Returns why the backend that is wished for cannot compute a model's recurrences; None if it can.

    Args:
        found: the kinds of recurrence in the model.
        wish: the key `recurrence`.
        gpu: whether the workers compute on GPUs.
        here: whether they have the packages that are installed here.
    """
    if wish == "auto":
        return None
    if not found:
        return f"{wish} is asked for, but the model has no recurrence that could be told; remove the key"
    if wish != "library":
        return None
    if not gpu:
        return "library computes on GPUs, and the workers have none; set auto, chunked or naive"
    if limited := next((each for each in found if each.limit is not None), None):
        return f"the kernels of {limited.package} for {limited.name} {limited.limit}; set auto"
    missing = sorted({each.package for each in found if not each.installed})
    if here and missing:
        packages = " ".join(missing)
        return (
            f"library needs kernels that are not installed; pip install --no-build-isolation {packages}, or "
            "set auto"
        )
    return None


def check_recurrences(found: Sequence[Found], wish: str, *, gpu: bool) -> None:
    """Refuses a wish that cannot be met on the worker that calls it, before it computes anything.

    Raises:
        EspanError: names the key.
    """
    if reason := refusal_of_wish(found, wish, gpu=gpu, here=True):
        raise EspanError(f"{KEY}: {reason}")


def _backend_text(found: Found, wish: str, gpu: bool) -> str:
    if wish == "naive":
        return "token by token (naive), for comparisons; slow, and its memory is not in the plan's"
    served = gpu and found.limit is None
    if wish == "library" or (wish == "auto" and served and found.installed):
        return f"kernels of {found.package}"
    return f"torch (chunked), which keeps {found.keeps}"
