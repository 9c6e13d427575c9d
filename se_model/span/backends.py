"""The backends of span-expanded attention: what each can serve, and which one is taken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from se_model.span import naive, sdpa, selection

logger = logging.getLogger(__name__)

_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


@dataclass(frozen=True)
class Backend:
    """One way to compute span-expanded attention, and what it can serve.

    Attributes:
        attend: (q, k, v, blocks, counts, layout, scale) -> output, differentiable.
        choose_blocks: (q, k, v, layout, top_k=, scale=, summary=, causal=) -> block ids.
        devices: device types; empty for any.
        grouped: whether key/value heads may be fewer than query heads.
        packed: whether a row may hold several documents.
        selections: which of "chunk" and "causal".
    """

    name: str
    attend: Callable[..., Tensor]
    choose_blocks: Callable[..., Tensor]
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    grouped: bool
    packed: bool
    selections: frozenset[str]

    def refusal(self, request: Request) -> str | None:
        """Why the backend cannot serve the request; None if it can."""
        if self.devices and request.device not in self.devices:
            return f"runs on {', '.join(sorted(self.devices))}, not on {request.device}"
        if request.dtype not in self.dtypes:
            return f"does not take {request.dtype}"
        if request.grouped and not self.grouped:
            return "takes as many key/value heads as query heads"
        if request.packed and not self.packed:
            return "does not take packed documents"
        if request.selection not in self.selections:
            return f"does not serve selection={request.selection!r}"
        return None


@dataclass(frozen=True)
class Request:
    """What a call asks of a backend."""

    device: str
    dtype: torch.dtype
    grouped: bool
    packed: bool
    selection: str


# In the order in which "auto" tries them.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="sdpa",
            attend=sdpa.attend,
            choose_blocks=selection.choose_blocks,
            devices=frozenset(),
            dtypes=_FLOATS,
            grouped=True,
            packed=True,
            selections=frozenset({"chunk", "causal"}),
        ),
        Backend(
            name="naive",
            attend=naive.attend,
            choose_blocks=naive.choose_blocks,
            devices=frozenset(),
            dtypes=_FLOATS,
            grouped=True,
            packed=True,
            selections=frozenset({"chunk", "causal"}),
        ),
    )
}


def find_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: if there is none; lists those there are.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be auto or one of {', '.join(BACKENDS)}; not {name!r}")
    return BACKENDS[name]


@lru_cache(maxsize=256)
def resolve(name: str, request: Request) -> Backend:
    """The backend called ``name``; for "auto" the first that serves the request, logged once.

    Raises:
        ValueError: if there is no such backend, or it cannot serve the request; says why.
    """
    if name != "auto":
        backend = find_backend(name)
        reason = backend.refusal(request)
        if reason:
            raise ValueError(f'backend {name!r} {reason}; choose another or "auto"')
        return backend
    passed_over: list[str] = []
    for backend in BACKENDS.values():
        reason = backend.refusal(request)
        if reason is None:
            level = logging.WARNING if backend.name == "naive" else logging.INFO
            why = "; ".join(passed_over) or "the first choice"
            logger.log(level, "span attention runs on backend %s for %s: %s", backend.name, request, why)
            return backend
        passed_over.append(f"{backend.name} {reason}")
    raise ValueError(f"no backend of span attention serves {request}: {'; '.join(passed_over)}")
