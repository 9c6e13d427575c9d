"""What a running model chooses: how full spans are, how far back they reach, what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from se_model.span.cases import Cases
from se_model.span.hits import HitCounter, Hits
from se_model.span.layout import Layout


class SelectionRecord:
    """Sums over every choice recorded so far; tensors stay on their device until ``summary``."""

    def __init__(self) -> None:
        self._slots = 0
        self._retrievable = 0
        self._filled: list[Tensor] = []
        self._distance: list[Tensor] = []
        self._distinct: list[Tensor] = []
        self._hits = HitCounter()

    def ask(self, find: Callable[[], Cases]) -> None:
        """Has what is asked in the forward calls to come looked for among the blocks they choose.

        ``find`` is called when the first choice is made, and never where none is.
        """
        self._hits.ask(find)

    def add(self, blocks: Tensor, layout: Layout, top_k: int) -> None:
        """Adds the choices of one call. blocks: int64 [B, G, choices, K], -1 for none."""
        self._hits.add(blocks, layout, top_k, _layer.get())
        batch, heads, choices, _ = blocks.shape
        self._slots += batch * heads * choices * top_k
        open_blocks = sum(layout.candidates(layout.choices_of(d) - 1) for d in layout.documents)
        self._retrievable += batch * heads * open_blocks
        filled = blocks >= 0
        starts = _on_device(layout.block_starts, blocks.device)
        chunks = _on_device(layout.chunk_starts, blocks.device)
        distances = (chunks[:, None] - starts[blocks.clamp(min=0)]).masked_fill(~filled, 0)
        # Empty slots go to one place beyond the last block.
        seen = torch.zeros(batch, heads, layout.blocks + 1, dtype=torch.bool, device=blocks.device)
        seen.scatter_(2, blocks.masked_fill(~filled, layout.blocks).flatten(2), True)
        self._filled.append(filled.sum())
        self._distance.append(distances.sum())
        self._distinct.append(seen[..., :-1].sum())

    def hits(self) -> Hits:
        """How often the choices recorded so far hold what is asked, as sums."""
        return self._hits.hits()

    def summary(self) -> dict[str, Any]:
        """All means: those of ``reach``, and those of ``Hits.means`` where anything was asked."""
        return {**self.reach(), **self.hits().means()}

    def reach(self) -> dict[str, float]:
        """Means over all choices; empty if none was recorded.

        Returns:
            ``filled``: fraction of the top-k slots that hold a block (a document's first chunk has none);
            ``distance``: mean distance in tokens from a retrieved block's first token to its chunk's;
            ``distinct``: fraction of the retrievable blocks that at least one choice retrieved.
        """
        if not self._filled:
            return {}
        filled, distance, distinct = (
            int(torch.stack(values).sum()) for values in (self._filled, self._distance, self._distinct)
        )
        return {
            "filled": filled / max(1, self._slots),
            "distance": distance / max(1, filled),
            "distinct": distinct / max(1, self._retrievable),
        }


def _on_device(values: Sequence[int], device: torch.device) -> Tensor:
    # A copy that blocks would wait for everything the device was given before.
    return torch.tensor(values).to(device, non_blocking=True)


_active: ContextVar[SelectionRecord | None] = ContextVar("selection_record", default=None)
_layer: ContextVar[int] = ContextVar("running_layer", default=0)


@contextmanager
def record_selections() -> Iterator[SelectionRecord]:
    """Records every choice of blocks made within, in this thread.

    A forward that activation checkpointing repeats is recorded twice, which leaves the means as they are.
    """
    record = SelectionRecord()
    token = _active.set(record)
    try:
        yield record
    finally:
        _active.reset(token)


def running_layer(layer: int) -> AbstractContextManager[None]:
    """Has choices made within recorded as those of a model's attention layer, counted from 0."""
    return nullcontext() if _active.get() is None else _as_layer(layer)


@contextmanager
def _as_layer(layer: int) -> Iterator[None]:
    token = _layer.set(layer)
    try:
        yield
    finally:
        _layer.reset(token)


def note_selection(blocks: Tensor, layout: Layout, top_k: int) -> None:
    """Adds a choice to the active record, if there is one."""
    record = _active.get()
    if record is not None:
        record.add(blocks, layout, top_k)
