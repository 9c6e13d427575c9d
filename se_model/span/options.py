"""The numbers and names that say how a row is cut and how its blocks are chosen."""

from __future__ import annotations

from dataclasses import dataclass

SUMMARIES = ("attention", "mean_key")
SELECTIONS = ("chunk", "causal")


@dataclass(frozen=True)
class SpanOptions:
    """Options of one call of span-expanded attention, as ``se_attention`` describes them.

    Raises:
        ValueError: if they do not fit together; names the option and what it may be.
    """

    chunk_size: int
    block_size: int
    top_k: int
    summary: str = "attention"
    selection: str = "chunk"
    refresh: int | None = None

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {self.block_size}")
        if self.chunk_size < 1 or self.chunk_size % self.block_size:
            raise ValueError(
                f"chunk_size must be a multiple of block_size {self.block_size}, not {self.chunk_size}"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 or more, not {self.top_k}")
        if self.summary not in SUMMARIES:
            raise ValueError(f"summary must be one of {', '.join(SUMMARIES)}; not {self.summary!r}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}; not {self.selection!r}")
        if self.refresh is not None and self.selection != "causal":
            raise ValueError('refresh needs selection="causal"')
        if self.queries_per_choice < 1 or self.chunk_size % self.queries_per_choice:
            raise ValueError(f"refresh must divide chunk_size {self.chunk_size}; {self.refresh} does not")

    @property
    def queries_per_choice(self) -> int:
        """How many consecutive queries retrieve the same blocks."""
        if self.selection == "chunk":
            return self.chunk_size
        return self.block_size if self.refresh is None else self.refresh
