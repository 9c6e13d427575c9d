"""How often choices of blocks hold what they are asked for (relevance), and what they are not (salience).

A layer's forward adds tensors on their device and asks it for nothing; numbers are read once, in the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from se_model.span.cases import Cases, Place, Places, find_places
from se_model.span.layout import Layout

DEPTHS = 10
"""Into how many parts a document is divided to tell where needles stand."""


@dataclass(frozen=True)
class LayerHits:
    """Sums over a layer's cases.

    Attributes:
        asked: for each key/value head, in how many of ``asked_cases`` the choice holds the block asked for.
        not_asked: for each head, in how many of ``not_asked_cases`` it holds a block with a needle that is
            not asked for.
        chance: how many of ``asked_cases`` blocks drawn at random would be expected to hold.
        asked_at: for each of `DEPTHS` equal parts of a document, how many of the cases whose needle stands
            there the heads' choices hold, over all heads.
        asked_cases_at: how many such cases there are.
    """

    asked: tuple[int, ...]
    asked_cases: int
    not_asked: tuple[int, ...]
    not_asked_cases: int
    chance: float
    asked_at: tuple[int, ...] = (0,) * DEPTHS
    asked_cases_at: tuple[int, ...] = (0,) * DEPTHS

    def __add__(self, other: LayerHits) -> LayerHits:
        return LayerHits(
            tuple(map(sum, zip(self.asked, other.asked, strict=True))),
            self.asked_cases + other.asked_cases,
            tuple(map(sum, zip(self.not_asked, other.not_asked, strict=True))),
            self.not_asked_cases + other.not_asked_cases,
            self.chance + other.chance,
            tuple(map(sum, zip(self.asked_at, other.asked_at, strict=True))),
            tuple(map(sum, zip(self.asked_cases_at, other.asked_cases_at, strict=True))),
        )


@dataclass(frozen=True)
class Hits:
    """Sums over cases, by layer; to be added over calls and workers."""

    layers: Mapping[int, LayerHits] = field(default_factory=dict)

    @classmethod
    def together(cls, parts: Iterable[Hits]) -> Hits:
        """The sums over all ``parts``, which are of the same model."""
        layers: dict[int, LayerHits] = {}
        for part in parts:
            for layer, hits in part.layers.items():
                layers[layer] = layers[layer] + hits if layer in layers else hits
        return cls(layers)

    def means(self) -> dict[str, Any]:
        """Shares of the cases; empty where there were none.

        Returns:
            ``asked``: of the blocks asked for, those among the blocks chosen, over all layers and heads;
            ``not_asked``: the same for candidates that are not asked for;
            ``chance``: what ``asked`` would be for blocks drawn at random;
            ``asked_by_head``, ``not_asked_by_head``: lists, for each layer in order, of one share for each
            head; None for layers without cases. ``not_asked`` and its list are absent without such cases.
        """
        layers = [self.layers[layer] for layer in sorted(self.layers)]
        asked_cases = sum(each.asked_cases for each in layers)
        if not asked_cases:
            return {}
        means: dict[str, Any] = {
            "asked": _mean(layers, lambda each: (each.asked, each.asked_cases)),
            "chance": sum(each.chance for each in layers) / asked_cases,
            "asked_by_head": [_by_head(each.asked, each.asked_cases) for each in layers],
        }
        if any(each.not_asked_cases for each in layers):
            means["not_asked"] = _mean(layers, lambda each: (each.not_asked, each.not_asked_cases))
            means["not_asked_by_head"] = [_by_head(each.not_asked, each.not_asked_cases) for each in layers]
        return means

    def by_depth(self) -> list[dict[str, Any]]:
        """The share ``asked`` of needles between two depths of their documents, where there are any.

        Returns:
            for each part of a document ``low`` and ``high``, from 0 to 1, ``asked`` over all layers and
            heads, and ``asked_by_layer``, None for layers without cases.
        """
        layers = [self.layers[layer] for layer in sorted(self.layers)]
        found = []
        for part in range(DEPTHS):
            chances = [each.asked_cases_at[part] * len(each.asked) for each in layers]
            hits = [each.asked_at[part] for each in layers]
            if sum(chances):
                shares = [hit / most if most else None for hit, most in zip(hits, chances, strict=True)]
                found.append(
                    {
                        "low": part / DEPTHS,
                        "high": (part + 1) / DEPTHS,
                        "asked": sum(hits) / sum(chances),
                        "asked_by_layer": shares,
                    }
                )
        return found


def _mean(layers: Sequence[LayerHits], of: Callable[[LayerHits], tuple[tuple[int, ...], int]]) -> float:
    sums = [of(each) for each in layers]
    return sum(sum(hits) for hits, _ in sums) / sum(len(hits) * cases for hits, cases in sums)


def _by_head(hits: Sequence[int], cases: int) -> list[float | None]:
    return [each / cases if cases else None for each in hits]


class HitCounter:
    """Counts hits by layer, one forward call after another; ``ask`` says what is asked in the next."""

    def __init__(self) -> None:
        self._find: Callable[[], Cases] | None = None
        self._cases: Cases | None = None
        self._places: dict[Layout, _DevicePlaces] = {}
        self._asked: dict[int, list[Tensor]] = defaultdict(list)
        self._not_asked: dict[int, list[Tensor]] = defaultdict(list)
        self._at: dict[int, list[Tensor]] = defaultdict(list)
        self._counts: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
        self._counts_at: dict[int, list[int]] = defaultdict(lambda: [0] * DEPTHS)

    def ask(self, find: Callable[[], Cases]) -> None:
        """Takes the cases of the forward calls to come, found when the first choice is made.

        A call that makes no choice never looks for any.
        """
        self._find, self._cases = find, None
        self._places.clear()

    def add(self, blocks: Tensor, layout: Layout, top_k: int, layer: int) -> None:
        """Adds the choices of one layer. blocks: int64 [B, G, choices, K], -1 for none."""
        if self._find is None:
            return
        if self._cases is None:
            self._cases = self._find()
        if not self._cases.documents:
            return
        if (self._cases.rows, self._cases.tokens) != (blocks.shape[0], layout.bounds[-1]):
            return  # A part of the call, its padding cut off: tokens are counted differently there.
        if layout not in self._places:
            self._places[layout] = _DevicePlaces.of(find_places(self._cases, layout), blocks.device)
        places = self._places[layout]
        asked = _hits(blocks, places.asked)
        self._asked[layer].append(asked.sum(0))
        self._at[layer].append(asked.new_zeros(DEPTHS).index_add_(0, places.parts, asked.sum(1)))
        self._not_asked[layer].append(_hits(blocks, places.not_asked).sum(0))
        for depth in places.found.depths:
            self._counts_at[layer][_part(depth)] += 1
        counts = len(places.found.asked), len(places.found.not_asked), places.found.chance(top_k)
        self._counts[layer].append(counts)

    def hits(self) -> Hits:
        """What was counted so far."""
        layers = {}
        for layer, counts in self._counts.items():
            asked, not_asked, at = (
                tuple(torch.stack(each[layer]).sum(0).tolist())
                for each in (self._asked, self._not_asked, self._at)
            )
            asked_cases, not_asked_cases, chance = map(sum, zip(*counts, strict=True))
            layers[layer] = LayerHits(
                asked,
                int(asked_cases),
                not_asked,
                int(not_asked_cases),
                chance,
                at,
                tuple(self._counts_at[layer]),
            )
        return Hits(layers)


@dataclass(frozen=True)
class _DevicePlaces:
    """The places, and their numbers on a device as int64 [N, 3]; parts: of documents, [N] for ``asked``."""

    found: Places
    asked: Tensor
    not_asked: Tensor
    parts: Tensor

    @classmethod
    def of(cls, found: Places, device: torch.device) -> _DevicePlaces:
        parts = torch.tensor([_part(depth) for depth in found.depths], dtype=torch.int64)
        return cls(
            found,
            _on_device(found.asked, device),
            _on_device(found.not_asked, device),
            parts.to(device, non_blocking=True),
        )


def _part(depth: float) -> int:
    return min(DEPTHS - 1, int(depth * DEPTHS))


def _on_device(places: Sequence[Place], device: torch.device) -> Tensor:
    return torch.tensor(places, dtype=torch.int64).reshape(-1, 3).to(device, non_blocking=True)


def _hits(blocks: Tensor, places: Tensor) -> Tensor:
    """For each place and head, whether its choice holds the block.

    blocks: [B, G, choices, K]; places: [N, 3] -> int64 [N, G].
    """
    row, choice, block = places.unbind(1)
    return (blocks[row, :, choice] == block[:, None, None]).any(-1).long()
