"""What is compared: span-expanded attention on every backend, and the attentions it competes with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.baselines import NoMemoryConfig, S2Config, SlidingWindowConfig
from se_model.baselines.s2 import group_bounds
from se_model.span import Attention, SpanConfig
from se_model.span.backends import BACKENDS, Request

REFERENCE = "SDPA full"


@dataclass(frozen=True)
class Setting:
    """The numbers of the compared attentions, all in tokens but ``heads``, ``head_dim`` and ``top_k``.

    Raises:
        ValueError: if they do not fit together.
    """

    heads: int = 4
    head_dim: int = 64
    chunk_size: int = 2048
    block_size: int = 32
    top_k: int = 8
    window: int = 2048

    def __post_init__(self) -> None:
        if self.heads < 2 or self.head_dim < 1:
            raise ValueError(
                f"heads must be at least 2 (S2 shifts half of them) and head_dim at least 1; "
                f"got {self.heads} and {self.head_dim}"
            )
        SpanConfig(chunk_sizes=self.chunk_size, block_size=self.block_size, top_k=self.top_k)
        SlidingWindowConfig(window=self.window)


@dataclass(frozen=True)
class Peer:
    """One attention at one length.

    Attributes:
        attend: (q, k, v), each [1, H, L, D] -> [1, H, L, D].
        flops: what a forward call has to compute, in floating-point operations (see ``README.md``).
    """

    name: str
    attend: Attention
    flops: int


def peers(setting: Setting, length: int, device: str, dtype: torch.dtype) -> Iterator[Peer]:
    """The reference first, then span-expanded attention on each backend that serves, then its competitors."""
    visible = partial(_flops, setting)
    yield Peer(REFERENCE, _sdpa_full, visible(causal_pairs((0, length))))
    request = Request(device, dtype, grouped=False, packed=False, selection="chunk")
    for name in (name for name, backend in BACKENDS.items() if backend.refusal(request) is None):
        span = SpanConfig(
            chunk_sizes=setting.chunk_size, block_size=setting.block_size, top_k=setting.top_k, backend=name
        )
        flops = visible(span_pairs(setting, length)) + choice_flops(setting, length)
        yield Peer(f"SE-Attn {name}", span.bind(layer=0, step=0), flops)
    window = SlidingWindowConfig(window=setting.window)
    yield Peer("sliding window", window.bind(layer=0, step=0), visible(window_pairs(setting.window, length)))
    groups = [group_bounds((0, length), None, shifted) for shifted in (False, True)]
    straight = (setting.heads + 1) // 2
    pairs = straight * causal_pairs(groups[0]) + (setting.heads - straight) * causal_pairs(groups[1])
    yield Peer("S2", S2Config().bind(layer=0, step=0), 4 * setting.head_dim * pairs)
    none = NoMemoryConfig(chunk_sizes=setting.chunk_size)
    chunks = (*range(0, length, setting.chunk_size), length)
    yield Peer("no memory", none.bind(layer=0, step=0), visible(causal_pairs(chunks)))


def causal_pairs(bounds: tuple[int, ...]) -> int:
    """How many (query, key) pairs attention sees that is causal between consecutive ``bounds``."""
    return sum((end - start) * (end - start + 1) // 2 for start, end in pairwise(bounds))


def window_pairs(window: int, length: int) -> int:
    """How many (query, key) pairs a sliding window sees; the token itself counts towards the window."""
    first = min(window, length)
    return causal_pairs((0, first)) + (length - first) * window


def span_pairs(setting: Setting, length: int) -> int:
    """How many (query, key) pairs SE-Attn sees: own chunk, causal, and the retrieved blocks."""
    size = setting.chunk_size
    bounds = (*range(0, length, size), length)
    retrieved = sum(
        (end - start) * min(setting.top_k, start // setting.block_size) * setting.block_size
        for start, end in pairwise(bounds)
    )
    return causal_pairs(bounds) + retrieved


def choice_flops(setting: Setting, length: int) -> int:
    """What choosing the blocks costs: a summary of each candidate, the queries' sums, and their products."""
    if not setting.top_k:
        return 0
    starts = range(0, length, setting.chunk_size)
    blocks = starts[-1] // setting.block_size
    summaries = blocks * setting.block_size**2 * 4 * setting.head_dim
    sums = length * setting.head_dim
    products = sum(start // setting.block_size for start in starts) * 2 * setting.head_dim
    return setting.heads * (summaries + sums + products)


def _flops(setting: Setting, pairs: int) -> int:
    """A pair costs a product with the key and one with the value, D multiplications and additions each."""
    return 4 * setting.heads * setting.head_dim * pairs


def _sdpa_full(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """torch's own call and nothing around it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
