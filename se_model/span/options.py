"""What says how a row is cut, how its blocks are chosen, and how logits are scaled."""

from __future__ import annotations

from dataclasses import dataclass

from se_model.span.rules import ALL_QUERIES, RELEVANCIES, SUMMARIES, QuerySample, as_sample

SELECTIONS = ("chunk", "causal")


@dataclass(frozen=True)
class SpanOptions:
    """Options of one call of span-expanded attention, checked once and then passed to whatever computes it.

    The fields are arguments of ``se_attention`` under their names there.

    Attributes:
        chunk_size: tokens per chunk (M); a multiple of ``block_size``.
        block_size: tokens per memory block (S).
        top_k: memory blocks that a choice retrieves (k); where there are fewer, all of them.
        summary: what represents a block when blocks are compared, one of ``rules.SUMMARIES``.
        selection: which queries choose, one of ``SELECTIONS``.
        refresh: queries that share a choice under "causal" selection; None for ``block_size``.
        scale: of the logits; None for the default, which ``scale_for`` gives.
        relevancy: how the comparisons of several queries with a block become one number, one of
            ``rules.RELEVANCIES``.
        queries: which queries are compared.

    Raises:
        ValueError: if they do not fit together; names the option and the values it may have.
    """

    chunk_size: int
    block_size: int
    top_k: int
    summary: str = "attention"
    selection: str = "chunk"
    refresh: int | None = None
    scale: float | None = None
    relevancy: str = "sum"
    queries: QuerySample = ALL_QUERIES

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
        if self.relevancy not in RELEVANCIES:
            raise ValueError(f"relevancy must be one of {', '.join(RELEVANCIES)}; not {self.relevancy!r}")
        as_sample(self.queries)
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}; not {self.selection!r}")
        if self.refresh is not None and self.selection != "causal":
            raise ValueError('refresh needs selection="causal"')
        if self.queries_per_choice < 1 or self.chunk_size % self.queries_per_choice:
            raise ValueError(f"refresh must divide chunk_size {self.chunk_size}; {self.refresh} does not")

    @property
    def sums(self) -> bool:
        """Whether all queries may be summed before any comparison: a sum of scores linear in the query.

        By its bounds a block's score is linear in the query's positive and its negative part.
        """
        linear = self.summary != "representative_keys"
        return linear and self.relevancy == "sum" and self.queries.kind == "all"

    @property
    def causal(self) -> bool:
        """Whether each choice is made by the queries of the choice before it, instead of its own."""
        return self.selection == "causal"

    @property
    def queries_per_choice(self) -> int:
        """How many consecutive queries retrieve the same blocks."""
        if self.selection == "chunk":
            return self.chunk_size
        return self.block_size if self.refresh is None else self.refresh

    def check_widths(self, head_dim: int, value_dim: int) -> None:
        """Checks that blocks can be compared with queries of D dimensions where values have Dv.

        Raises:
            ValueError: for the summary "attention", which is made of values, if they are not as wide.
        """
        if self.summary == "attention" and self.top_k and head_dim != value_dim:
            raise ValueError(
                f'summary="attention" has the {value_dim} dimensions of values, and cannot be compared with '
                f'queries of {head_dim}: use a summary of keys, "mean_key" or "representative_keys"'
            )

    def scale_for(self, head_dim: int) -> float:
        """The scale of the logits in heads of dimension D, ``head_dim``: D ** -0.5 unless one was given."""
        return head_dim**-0.5 if self.scale is None else self.scale
