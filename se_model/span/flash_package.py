"""The one place where flash attention over rows of unequal lengths enters: torch's own, else the package's.

torch 2.13 has it as ``torch.nn.attention.varlen.varlen_attn``; the package flash-attn, 2.5 or newer, builds
against a CUDA torch only. It is the same kernel: in a row that has more keys than queries its causal mask is
aligned at the bottom right, so the last query sees every key, and its backward adds in a fixed order under
``torch.use_deterministic_algorithms(True)``, a little slower.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor


class VarlenAttention(Protocol):
    """Causal attention, apart in every one of several rows laid end to end."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        query_bounds: Tensor,
        key_bounds: Tensor,
        most_queries: int,
        most_keys: int,
        scale: float,
    ) -> Tensor:
        """q: [all queries, H, D]; k, v: [all keys, G, D], G divides H -> [all queries, H, D].

        ``query_bounds`` and ``key_bounds``: int32 [rows + 1], from 0 to the number of queries and of keys.
        Query j of a row with m queries and n keys sees its keys 0 to n - m + j. ``most_queries`` and
        ``most_keys`` are those of the row that has the most.
        """
        ...


@cache
def has_torch_varlen() -> bool:
    """Whether torch has this attention for the GPU here: NVIDIA's, of compute capability 8.0 or newer.

    Older versions of torch have it without a scale, or with other words for a causal mask.
    """
    if not (torch.cuda.is_available() and torch.version.cuda is not None):
        return False
    if torch.cuda.get_device_capability() < (8, 0) or not torch.backends.cuda.is_flash_attention_available():
        return False
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    call = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return inspect.signature(call).parameters.keys() >= {"scale", "window_size", "enable_gqa"}


def has_flash_attn() -> bool:
    """Whether the package flash-attn is installed."""
    return find_spec("flash_attn") is not None


def has_varlen_attention() -> bool:
    """Whether `varlen_attention` can be called."""
    return has_torch_varlen() or has_flash_attn()


def varlen_name() -> str:
    """Whose kernel `varlen_attention` is."""
    return "torch's varlen_attn" if has_torch_varlen() else "flash-attn"


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    most_queries: int,
    most_keys: int,
    scale: float,
) -> Tensor:
    """A ``VarlenAttention`` for float16 or bfloat16 on CUDA: torch's where it has one, else flash-attn's."""
    attend = torch_varlen if has_torch_varlen() else flash_attn_varlen
    return attend(q, k, v, query_bounds, key_bounds, most_queries, most_keys, scale)


def torch_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    most_queries: int,
    most_keys: int,
    scale: float,
) -> Tensor:
    """``torch.nn.attention.varlen.varlen_attn`` as a ``VarlenAttention``."""
    out: Tensor = importlib.import_module("torch.nn.attention.varlen").varlen_attn(
        q,
        k,
        v,
        query_bounds,
        key_bounds,
        most_queries,
        most_keys,
        scale=scale,
        window_size=(-1, 0),  # any number of keys before, none behind
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out


def flash_attn_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    most_queries: int,
    most_keys: int,
    scale: float,
) -> Tensor:
    """flash-attn's ``flash_attn_varlen_func`` as a ``VarlenAttention``."""
    out: Tensor = importlib.import_module("flash_attn").flash_attn_varlen_func(
        q,
        k,
        v,
        query_bounds,
        key_bounds,
        most_queries,
        most_keys,
        softmax_scale=scale,
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out
