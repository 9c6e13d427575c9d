"""Who holds which chunks, choices and memory blocks when a row lies on several ranks: integers, no tensors.

Shards are contiguous and equally long; documents begin and end anywhere. Chunks, choices and blocks are
counted from the start of their document (``span.layout``), so a shard may begin inside one. Then its rank
receives the *head* of that chunk, the tokens that its left neighbour holds, and works on a row of its own:
the head and the shard. No chunk is longer than a shard, so no chunk has a third rank.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

from se_model.span.layout import Document, Layout


@dataclass(frozen=True)
class RankPlan:
    """One rank's part. Tokens, blocks and choices count over the whole row, ends exclusive.

    Attributes:
        start, end: the shard.
        head: tokens of the left neighbour that stand before the shard in its first chunk.
        block_head: of these, the ones that stand before it in its first block.
        blocks: the blocks whose last token lies in the shard, which this rank owns.
        choices: the choices that queries of the shard make or share in.
        shares_first: whether the first of them was begun by the left neighbour, which then decides it.
        first_choice: the choice with which the head begins.
        own: the layout of head and shard as a row by itself.
    """

    start: int
    end: int
    head: int
    block_head: int
    blocks: range
    choices: range
    shares_first: bool
    first_choice: int
    own: Layout

    @property
    def tokens(self) -> int:
        """Tokens in the shard."""
        return self.end - self.start

    @property
    def first_own_block(self) -> int:
        """Which block of ``own`` is the first of ``blocks``."""
        return self.head // self.own.block_size


@lru_cache(maxsize=64)
def plan_ranks(layout: Layout, ranks: int) -> tuple[RankPlan, ...]:
    """The part of every rank. ``layout`` is the whole row's.

    Raises:
        ValueError: if the row cannot be cut into that many shards of whole chunks.
    """
    length = layout.bounds[-1]
    if length % ranks or (length // ranks) % layout.chunk_size:
        raise ValueError(
            f"a row of {length} tokens on {ranks} ranks leaves shards of {length / ranks:g} tokens, "
            f"which must be a multiple of the chunk size {layout.chunk_size}"
        )
    size = length // ranks
    return tuple(_plan_rank(layout, start, start + size) for start in range(0, length, size))


def owner_bounds(plans: tuple[RankPlan, ...]) -> list[int]:
    """For each rank but the last the first block that is not its own any more: ids are in rank order."""
    return [plan.blocks.stop for plan in plans[:-1]]


def _plan_rank(layout: Layout, start: int, end: int) -> RankPlan:
    document = _document_at(layout, start)
    offset = start - document.start
    head, block_head = offset % layout.chunk_size, offset % layout.block_size
    inner = [bound for bound in layout.bounds if start < bound < end]
    first = start - head
    bounds = (0, *(bound - first for bound in inner), end - first)
    return RankPlan(
        start=start,
        end=end,
        head=head,
        block_head=block_head,
        blocks=range(_blocks_ending_by(layout, start), _blocks_ending_by(layout, end)),
        choices=range(_choice_at(layout, start), _choice_at(layout, end - 1) + 1),
        shares_first=offset % layout.refresh > 0,
        first_choice=_choice_at(layout, first),
        own=Layout(layout.chunk_size, layout.block_size, layout.refresh, bounds),
    )


def _document_at(layout: Layout, token: int) -> Document:
    return layout.documents[bisect_right(layout.bounds, token) - 1]


def document_of_choice(layout: Layout, choice: int) -> Document:
    """The document that a choice belongs to."""
    firsts = [document.first_choice for document in layout.documents]
    return layout.documents[bisect_right(firsts, choice) - 1]


def _choice_at(layout: Layout, token: int) -> int:
    document = _document_at(layout, token)
    return document.first_choice + (token - document.start) // layout.refresh


def _blocks_ending_by(layout: Layout, token: int) -> int:
    """How many blocks of the row end at ``token`` or before."""
    if token == 0:
        return 0
    document = _document_at(layout, token - 1)
    if token == document.end:
        return document.first_block + -(-document.length // layout.block_size)
    return document.first_block + (token - document.start) // layout.block_size
