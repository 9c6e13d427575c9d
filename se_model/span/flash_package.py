"""The one place where the package flash-attn enters: its attention over rows of unequal lengths.

flash-attn 2.5 or newer, which builds against a CUDA torch only. In a row that has more keys than queries its
causal mask is aligned at the bottom right: the last query sees every key.
"""

from __future__ import annotations

import importlib
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


def has_flash_attn() -> bool:
    """Whether the package flash-attn is installed."""
    return find_spec("flash_attn") is not None


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
    """flash-attn's ``flash_attn_varlen_func`` as a ``VarlenAttention``; float16 or bfloat16, on CUDA.

    Its backward adds in a fixed order under ``torch.use_deterministic_algorithms(True)``, a little slower.
    """
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
