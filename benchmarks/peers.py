"""What is compared: span-expanded attention on every backend, and the attentions it competes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.arithmetic import (
    causal_pairs,
    choice_flops,
    chunk_bounds,
    pair_flops,
    span_pairs,
    window_pairs,
)
from benchmarks.settings import Setting
from se_model.baselines import NoMemoryConfig, S2Config, SlidingWindowConfig
from se_model.baselines.s2 import group_bounds
from se_model.span import SpanConfig, se_attention, select_blocks
from se_model.span.backends import BACKENDS, Request

OURS = "SE-Attn"
# What a backend is measured with: whose queries choose, and by which rule.
CHOICES = (("chunk", "default"), ("causal", "default"), ("chunk", "paper"))
# The oracle builds its masks as Python lists: more queries would take most of the run's time.
ORACLE, ORACLE_QUERIES = "naive", 8192

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """One attention at one length.

    Attributes:
        attends: (q, k, v) -> out; several, such as one for each chunk size, are called in turn.
        flops: what a forward call has to compute over pairs of a query and a key, in operations.
        choice_flops: what it has to compute to choose among the keys.
        selects: (q, k, v) -> the choice alone, one for each of ``attends``; empty where nothing is chosen.
        score_bytes: what it holds beyond inputs and outputs because it stores every query's scores.
    """

    name: str
    attends: tuple[Call, ...]
    flops: int
    choice_flops: int = 0
    selects: tuple[Call, ...] = ()
    score_bytes: int = 0


@dataclass(frozen=True)
class LeftOut:
    """An attention that is not measured, and why; ``failed`` if it was tried and raised."""

    name: str
    reason: str
    failed: bool = False

    @classmethod
    def by(cls, error: Exception, name: str, when: str) -> LeftOut:
        """Of an attention that raised, in what it was doing."""
        message = next(iter(str(error).splitlines()), "")
        return cls(name, f"{when}: failed: {type(error).__name__}: {message}", failed=True)


def span_name(backend: str, selection: str = "chunk", rule: str = "default") -> str:
    """What a backend's row is called."""
    causal = "" if selection == "chunk" else f", {selection}"
    return f"{OURS} {backend}{causal}" + ("" if rule == "default" else f", {rule}'s choice")


def own_peers(setting: Setting, length: int, device: str, dtype: torch.dtype) -> list[Peer | LeftOut]:
    """Span-expanded attention on each backend, then the attentions of ``se_model.baselines``."""
    found: list[Peer | LeftOut] = [
        _span_peer(setting, length, backend, *choice, device, dtype)
        for backend in BACKENDS
        for choice in CHOICES
    ]
    visible = partial(pair_flops, setting)
    window = SlidingWindowConfig(window=setting.window).bind(layer=0, step=0)
    found.append(Peer("sliding window", (window,), visible(window_pairs(setting.window, length))))
    groups = [causal_pairs(group_bounds((0, length), None, shifted)) for shifted in (False, True)]
    straight = (setting.heads + 1) // 2
    pairs = straight * groups[0] + (setting.heads - straight) * groups[1]
    found.append(Peer("S2", (S2Config().bind(layer=0, step=0),), 4 * setting.head_dim * pairs))
    none = tuple(NoMemoryConfig(chunk_sizes=size).bind(layer=0, step=0) for size in setting.chunk_sizes)
    alone = [causal_pairs(chunk_bounds(size, length)) for size in setting.chunk_sizes]
    found.append(Peer("no memory", none, visible(_mean(alone))))
    return found


def _span_peer(
    setting: Setting, length: int, backend: str, selection: str, rule: str, device: str, dtype: torch.dtype
) -> Peer | LeftOut:
    name = span_name(backend, selection, rule)
    if backend == ORACLE and length * setting.heads * len(setting.chunk_sizes) > ORACLE_QUERIES:
        return LeftOut(
            name,
            f"the oracle, written to be checked by eye, is measured with {ORACLE_QUERIES:,} queries at most, "
            "those of all heads and chunk sizes counted",
        )
    request = Request(
        device=device,
        dtype=dtype,
        head_dim=setting.head_dim,
        block_size=setting.block_size,
        grouped=setting.kv_heads != setting.heads,
        gradients=True,
        selection=selection,
    )
    refusal = BACKENDS[backend].refusal(request)
    if refusal:
        return LeftOut(name, refusal)
    config = SpanConfig(
        chunk_sizes=setting.chunk_sizes,
        block_size=setting.block_size,
        top_k=setting.top_k,
        selection=selection,
        rule=rule,
    )
    options = [config.options_of(size) for size in setting.chunk_sizes]
    attends, selects = (
        tuple(partial(call, **asdict(each), backend=backend) for each in options)
        for call in (se_attention, select_blocks)
    )
    return Peer(
        name,
        attends,
        pair_flops(setting, _mean([span_pairs(setting, size, length) for size in setting.chunk_sizes])),
        _mean([choice_flops(setting, each, length) for each in options]),
        selects if setting.top_k else (),
    )


def _mean(numbers: list[int]) -> int:
    return round(sum(numbers) / len(numbers))
