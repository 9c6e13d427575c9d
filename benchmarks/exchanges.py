"""What one rank runs in the benchmark of context parallelism: layers, and the exchanges of other designs.

Ring and Ulysses are their exchanges alone, of the right sizes and in the right number: for bytes, what is
computed in between does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from se_model.parallel import ContextParallelGroup, PendingExchange, SequenceShard
from se_model.parallel.attention import parallel_attention
from se_model.parallel.exchange import gather_states
from se_model.parallel.formula import Heads, Share
from se_model.parallel.state_space import state_before
from se_model.span import SpanConfig

Drawn = tuple[Tensor, Tensor, Tensor, Tensor]

OURS = {"SE-Attn": "default", "SE-Attn, paper's choice": "paper"}
"""Span-expanded attention's rows, and the rule by which each chooses its blocks."""


@dataclass(frozen=True)
class Layers:
    """The numbers of the layers that are measured, in float32."""

    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    chunk_size: int = 2048
    block_size: int = 32
    top_k: int = 8
    state_heads: int = 80
    state_head_size: int = 64
    state_size: int = 128

    def config(self, rule: str) -> SpanConfig:
        """The attention, its blocks chosen by that rule."""
        return SpanConfig(
            chunk_sizes=self.chunk_size, block_size=self.block_size, top_k=self.top_k, rule=rule
        )

    @property
    def attention_heads(self) -> Heads:
        """The attention's heads, as the formulas take them."""
        return Heads(self.heads, self.kv_heads, self.head_dim)

    def share(self, ranks: int, length: int) -> Share:
        """One rank's share of a row, as the formulas take it."""
        return Share(ranks, 1, length, itemsize=4)

    def draw(self, tokens: int, seed: int) -> Drawn:
        """q, k, v and the output's gradient of one rank."""
        generator = torch.Generator().manual_seed(seed)
        q, k, v, grad = (
            torch.randn(1, tokens, heads, self.head_dim, generator=generator).transpose(1, 2)
            for heads in (self.heads, self.kv_heads, self.kv_heads, self.heads)
        )
        return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad

    def attend(self, drawn: Drawn, shard: SequenceShard, rule: str = "default") -> Tensor:
        """Span-expanded attention of one rank's tokens."""
        q, k, v, _ = drawn
        return parallel_attention("span")(self.config(rule), q, k, v, shard, layer=0, step=0, scale=None)


def count_bytes(rank: int, ranks: int, layers: Layers, length: int, seed: int) -> dict[str, Any]:
    """Bytes that this rank exchanges, by design, direction and purpose."""
    designs: dict[str, Callable[[SequenceShard, Layers, Drawn], None]] = {
        **{name: partial(_span, rule=rule) for name, rule in OURS.items()},
        "all-gather of K/V": _all_gather,
        "ring": _ring,
        "Mamba-2 state": _state,
    }
    if layers.kv_heads % ranks == 0:
        designs["Ulysses"] = _ulysses
    counted = {}
    for name, design in designs.items():
        shard = SequenceShard.of(ContextParallelGroup(), length, chunk_multiple=layers.chunk_size)
        design(shard, layers, layers.draw(shard.tokens_per_rank, seed + rank))
        counted[name] = [
            {"purpose": purpose, "direction": direction, **asdict(traffic)}
            for (purpose, direction), traffic in sorted(shard.group.counter.by_purpose.items())
        ]
    return counted


def _span(shard: SequenceShard, layers: Layers, drawn: Drawn, rule: str) -> None:
    torch.autograd.grad(layers.attend(drawn, shard, rule), drawn[:3], drawn[3])


def _all_gather(shard: SequenceShard, layers: Layers, drawn: Drawn) -> None:
    keys = torch.stack([x.detach() for x in drawn[1:3]]).requires_grad_()
    gathered = gather_states(keys, shard.group, "keys and values")
    torch.autograd.grad(gathered, keys, torch.ones_like(gathered))


def _ring(shard: SequenceShard, layers: Layers, drawn: Drawn) -> None:
    keys = torch.stack([x.detach() for x in drawn[1:3]])
    for _ in range(shard.group.size - 1):
        keys = _pass_on(keys, shard.group, "forward")
        # In the backward they come round once more, and their gradients with them.
        _pass_on(keys, shard.group, "backward")
        _pass_on(torch.ones_like(keys), shard.group, "backward")


def _pass_on(x: Tensor, group: ContextParallelGroup, direction: Any) -> Tensor:
    to, source = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    parts = [x if rank == to else x.new_empty(0) for rank in range(group.size)]
    shapes = [x.shape if rank == source else (0,) for rank in range(group.size)]
    return group.all_to_all(parts, shapes, purpose="keys and values", direction=direction)[source]


def _ulysses(shard: SequenceShard, layers: Layers, drawn: Drawn) -> None:
    ranks = shard.group.size
    for direction in ("forward", "backward"):
        for x in drawn:
            parts = x.detach().chunk(ranks, dim=1)
            shapes = [part.shape for part in parts]
            shard.group.all_to_all(parts, shapes, purpose="heads", direction=direction)


def _state(shard: SequenceShard, layers: Layers, drawn: Drawn) -> None:
    state = torch.randn(1, layers.state_heads, layers.state_head_size, layers.state_size).requires_grad_()
    log_decay = torch.full((1, layers.state_heads), -0.1, dtype=torch.float64, requires_grad=True)
    before = state_before(shard, state, log_decay)
    torch.autograd.grad(before, (state, log_decay), torch.ones_like(before))


def time_steps(
    rank: int, ranks: int, layers: Layers, tokens: int, repeats: int, seed: int
) -> dict[str, list[float]]:
    """Seconds of span attention with ``tokens`` on every rank, forward and with backward, one thread each."""
    shard = SequenceShard.of(ContextParallelGroup(), tokens * ranks, chunk_multiple=layers.chunk_size)
    drawn = layers.draw(tokens, seed + rank)

    def forward() -> None:
        with torch.no_grad():
            layers.attend(drawn, shard)

    def both() -> None:
        torch.autograd.grad(layers.attend(drawn, shard), drawn[:3], drawn[3])

    forward()
    return {
        name: [_seconds(call, shard.group) for _ in range(repeats)]
        for name, call in (("forward", forward), ("forward_backward", both))
    }


def _seconds(call: Callable[[], None], group: ContextParallelGroup) -> float:
    group.all_gather(torch.zeros(1), purpose="waiting for all")
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class TimedGroup(ContextParallelGroup):
    """A group that notes how long exchanges that may overlap with work are waited for.

    at_once: wait where the exchange starts, so that nothing overlaps.
    """

    at_once: bool = False
    waited: list[float] = field(default_factory=list)

    def all_to_all(self, *args: Any, **kwargs: Any) -> Any:
        """As the group's."""
        exchange = super().all_to_all(*args, **kwargs)
        if not isinstance(exchange, PendingExchange):
            return exchange
        timed = TimedExchange(exchange.work, exchange.received, exchange.buffers, self.waited)
        if self.at_once:
            timed.wait()
        return timed


@dataclass(frozen=True)
class TimedExchange(PendingExchange):
    """Notes how long the first call of ``wait`` takes."""

    waited: list[float]

    def wait(self) -> list[Tensor]:
        """As the exchange's."""
        start = time.perf_counter()
        received = super().wait()
        self.waited.append(time.perf_counter() - start)
        return received


def time_overlap(
    rank: int, ranks: int, layers: Layers, tokens: int, repeats: int, seed: int
) -> dict[str, list[float]]:
    """Seconds that the chosen blocks are waited for: where they are asked for, and after the own chunks."""
    drawn = layers.draw(tokens, seed + rank)
    waits: dict[str, list[float]] = {"at once": [], "after own chunks": []}
    for _ in range(repeats + 1):
        for name, at_once in (("at once", True), ("after own chunks", False)):
            group = TimedGroup(at_once=at_once)
            shard = SequenceShard.of(group, tokens * ranks, chunk_multiple=layers.chunk_size)
            group.all_gather(torch.zeros(1), purpose="waiting for all")
            with torch.no_grad():
                layers.attend(drawn, shard)
            waits[name].append(group.waited[0])
    return {name: seconds[1:] for name, seconds in waits.items()}
