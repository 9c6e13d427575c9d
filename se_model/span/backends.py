"""The backends of span-expanded attention: what each can serve, and which one is taken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from se_model.span import flash, fused, naive, outline
from se_model.span.flash_package import has_varlen_attention, varlen_name
from se_model.span.sdpa import backend as sdpa
from se_model.span.selection.choose import choose_blocks
from se_model.span.triton_package import has_triton, is_interpreting

logger = logging.getLogger(__name__)

_HALVES = frozenset({torch.bfloat16, torch.float16})
_FLOATS = _HALVES | {torch.float64, torch.float32}
_SELECTIONS = frozenset({"chunk", "causal"})


@dataclass(frozen=True)
class Request:
    """What a call asks of a backend.

    Attributes:
        device: its type, such as "cuda".
        head_dim: D, of queries and keys.
        value_dim: Dv; None for D.
        block_size: S.
        grouped: fewer key/value heads than query heads.
        packed: several documents in the row.
        gradients: some input needs a gradient.
        selection: "chunk" or "causal".
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    value_dim: int | None = None
    block_size: int = 32
    grouped: bool = False
    packed: bool = False
    gradients: bool = False
    selection: str = "chunk"


@dataclass(frozen=True)
class Backend:
    """One way to compute span-expanded attention, and what it can serve.

    Attributes:
        attend: (q, k, v, blocks, counts, layout, options) -> output, differentiable if ``gradients``.
        choose_blocks: (q, k, v, layout, options) -> block ids.
        devices: device types; empty for any.
        interpreted_devices: further device types, served by triton's interpreter, which "auto" never takes.
        dtypes: of q, k and v.
        largest_head_dim: None for any.
        head_dim_multiple: what D must be a multiple of.
        unequal_widths: whether values may be narrower or wider than queries and keys.
        largest_block_size: None for any.
        grouped: whether key/value heads may be fewer than query heads.
        packed: whether a row may hold several documents.
        gradients: whether it can be trained through.
        selections: which of "chunk" and "causal".
        installed: whether the package that it needs is installed; ``package`` names it.
        kernel: whose kernel computes, where there is a choice.
    """

    name: str
    attend: Callable[..., Tensor]
    choose_blocks: Callable[..., Tensor]
    devices: frozenset[str] = frozenset()
    interpreted_devices: frozenset[str] = frozenset()
    dtypes: frozenset[torch.dtype] = _FLOATS
    largest_head_dim: int | None = None
    head_dim_multiple: int = 1
    unequal_widths: bool = True
    largest_block_size: int | None = None
    grouped: bool = True
    packed: bool = True
    gradients: bool = True
    selections: frozenset[str] = _SELECTIONS
    package: str | None = None
    installed: Callable[[], bool] = lambda: True
    kernel: Callable[[], str] | None = None

    def refusal(self, request: Request, *, interpreted: bool = False) -> str | None:
        """Why the backend cannot serve the request; None if it can.

        ``interpreted`` also allows the devices on which only triton's interpreter runs.
        """
        devices = self.devices | (self.interpreted_devices if interpreted else frozenset())
        if self.devices and request.device not in devices:
            return f"runs on {', '.join(sorted(self.devices))}, not on {request.device}"
        if not self.installed():
            return f"needs the package {self.package}, which is not installed"
        if request.dtype not in self.dtypes:
            return f"does not take {request.dtype}"
        if self.largest_head_dim is not None and request.head_dim > self.largest_head_dim:
            return f"takes head dimensions up to {self.largest_head_dim}, not {request.head_dim}"
        if request.head_dim % self.head_dim_multiple:
            return f"takes head dimensions that {self.head_dim_multiple} divides, not {request.head_dim}"
        if request.value_dim not in (None, request.head_dim) and not self.unequal_widths:
            return f"takes values as wide as queries, not {request.value_dim} beside {request.head_dim}"
        if self.largest_block_size is not None and request.block_size > self.largest_block_size:
            return f"takes memory blocks of up to {self.largest_block_size} tokens, not {request.block_size}"
        if request.grouped and not self.grouped:
            return "takes as many key/value heads as query heads"
        if request.packed and not self.packed:
            return "does not take packed documents"
        if request.gradients and not self.gradients:
            return "has no gradients"
        if request.selection not in self.selections:
            return f"does not serve selection={request.selection!r}"
        return None


# In the order in which "auto" tries them.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="fused",
            attend=fused.attend,
            choose_blocks=fused.choose_blocks,
            devices=frozenset({"cuda"}),
            interpreted_devices=frozenset({"cpu"}),
            dtypes=_HALVES | {torch.float32},
            largest_head_dim=256,
            unequal_widths=False,
            largest_block_size=128,
            package="triton",
            installed=has_triton,
        ),
        Backend(
            name="flash",
            attend=flash.attend,
            choose_blocks=choose_blocks,
            devices=frozenset({"cuda"}),
            dtypes=_HALVES,
            largest_head_dim=256,
            head_dim_multiple=8,
            unequal_widths=False,
            package="flash-attn (or torch 2.13 and a GPU of compute capability 8.0)",
            installed=has_varlen_attention,
            kernel=varlen_name,
        ),
        Backend(name="sdpa", attend=sdpa.attend, choose_blocks=choose_blocks),
        Backend(name="naive", attend=naive.attend, choose_blocks=naive.choose_blocks),
    )
}

OUTLINE = Backend(
    name="outline",
    attend=outline.attend,
    choose_blocks=outline.choose_blocks,
    devices=frozenset({"meta"}),
)
"""Takes the place of every backend for tensors without memory; no caller asks for it by name."""


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

    Tensors without memory (device `meta`) are served by `OUTLINE` under every name.

    Raises:
        ValueError: if there is no such backend, or it cannot serve the request; says why.
    """
    if request.device == "meta":
        return OUTLINE
    if name != "auto":
        backend = find_backend(name)
        reason = backend.refusal(request, interpreted=is_interpreting())
        if reason:
            raise ValueError(f'backend {name!r} {reason}; choose another or "auto"')
        return backend
    passed_over: list[str] = []
    for backend in BACKENDS.values():
        reason = backend.refusal(request)
        if reason is None:
            level = logging.WARNING if backend.name == "naive" else logging.INFO
            why = "; ".join(passed_over) or "the first choice"
            name = backend.name if backend.kernel is None else f"{backend.name} ({backend.kernel()})"
            logger.log(level, "span attention runs on backend %s for %s: %s", name, request, why)
            return backend
        passed_over.append(f"{backend.name} {reason}")
    raise ValueError(f"no backend of span attention serves {request}: {'; '.join(passed_over)}")
