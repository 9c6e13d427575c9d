"""The `attention` key: which attention a model computes, written as `full` or `{kind: span, ...}`.

Each class holds the keys of one kind; `pipelines.models.fitting` builds its counterpart in `se_model`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PositiveInt, field_validator, model_validator

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.section import Section

NonNegativeInt = Annotated[int, Field(ge=0)]


class AttentionSection(Section):
    """Base of every kind."""

    kind: str
    draws: ClassVar[bool] = False
    """Whether this attention draws random numbers and so takes a seed."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """The sizes of the chunks that tokens attend in; none where the attention has no chunks."""
        return ()

    @property
    def text(self) -> str:
        """What is computed, for plans and progress."""
        return self.kind


class _Chunked(AttentionSection):
    """Attention inside chunks.

    Attributes:
        chunk_sizes: tokens in a chunk; of several sizes, each layer draws one in every forward call.
    """

    chunk_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2048, 4096)
    draws: ClassVar[bool] = True

    @property
    def chunks(self) -> tuple[int, ...]:
        """The `chunk_sizes`."""
        return self.chunk_sizes

    @property
    def text(self) -> str:
        """With the size of the chunks."""
        return f"{self.kind}, chunks of {' or '.join(f'{size:,}' for size in self.chunk_sizes)}"

    @field_validator("chunk_sizes", mode="before", json_schema_input_type=int | tuple[PositiveInt, ...])
    @classmethod
    def _one_size_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


class _Retrieving(_Chunked):
    """Attention inside chunks and to earlier memory blocks.

    Attributes:
        block_size: tokens in a memory block; divides every chunk size.
        top_k: memory blocks that a chunk retrieves; 0 for attention inside chunks alone.
    """

    block_size: PositiveInt = 32
    top_k: NonNegativeInt = 8

    @property
    def text(self) -> str:
        """With what a chunk retrieves."""
        return f"{super().text}, {self.top_k} blocks of {self.block_size} for each"

    @model_validator(mode="after")
    def _chunks_are_whole_blocks(self) -> _Retrieving:
        for index, size in enumerate(self.chunk_sizes):
            if size % self.block_size:
                below = size - size % self.block_size
                nearest = below or self.block_size
                raise InvalidKeyError(
                    f"chunk_sizes.{index}",
                    f"{size} is not a multiple of block_size {self.block_size}; the nearest is {nearest}",
                )
        return self


class FullSection(AttentionSection):
    """Every token sees all tokens before it.

    Attributes:
        kind: `full`, which may stand alone.
    """

    kind: Literal["full"] = "full"


class Representative(Section):
    """The queries of a chunk that stand out.

    Attributes:
        representative: how many: those farthest from the chunk's mean query.
    """

    representative: PositiveInt


class Stride(Section):
    """Queries of a chunk at equal distances.

    Attributes:
        stride: tokens from one to the next.
    """

    stride: PositiveInt


def _is_a_sample(value: Any) -> Any:
    known = isinstance(value, Section) or value == "all"
    if not known and not (isinstance(value, dict) and set(value) in ({"representative"}, {"stride"})):
        raise ValueError("write all, {representative: 16} or {stride: 4}")
    return value


RULES: dict[str, dict[str, Any]] = {
    "paper": {"summary": "attention", "relevancy": "sum", "queries": "all"},
    "default": {"summary": "representative_keys", "relevancy": "peak", "queries": {"representative": 16}},
}
"""The words that a `rule` stands for, as in `se_model.span.rules`; a test holds them to it."""


class SpanSection(_Retrieving):
    """Span-expanded attention; see `se_model.SpanConfig`, and docs/selection.md on how blocks are chosen.

    Attributes:
        kind: `span`.
        summary: what stands for a block when blocks are chosen: `representative_keys` (the four farthest
            from the mean of its keys), `key_bounds` (the least and the largest of its keys in each channel),
            `mean_key` (the mean of its keys) or `attention` (the paper's: the mean of the block's attention
            over itself).
        relevancy: what a block's comparisons with several queries come to: `sum` (the paper's) or `max`;
            or, where each query first shares one out among the blocks, the sum of its shares, `mass`, or the
            largest, `peak`.
        queries: which queries of a chunk choose: `{representative: r}`, `{stride: n}` or `all` (the paper's).
        rule: the last three keys in one word: `paper`, or `default` for what they are if left out.
        selection: `chunk` (the paper's: a chunk's queries choose together) or `causal` (no token sees a
            choice that a later one made).
        refresh: queries that share a choice under `causal`; divides every chunk size; default: `block_size`.
        backend: `auto`, or one by name: `fused`, `flash`, `sdpa`, `naive`.
    """

    kind: Literal["span"] = "span"
    summary: Literal["representative_keys", "key_bounds", "mean_key", "attention"] = "representative_keys"
    relevancy: Literal["peak", "mass", "max", "sum"] = "peak"
    queries: Annotated[Literal["all"] | Representative | Stride, BeforeValidator(_is_a_sample)] = (
        Representative(representative=16)
    )
    # Dumped as the words that it stands for: fingerprints and records are the same however it is written.
    rule: Annotated[Literal["paper", "default"] | None, Field(exclude=True)] = None
    selection: Literal["chunk", "causal"] = "chunk"
    refresh: PositiveInt | None = None
    backend: str = "auto"

    @property
    def text(self) -> str:
        """With how blocks are chosen."""
        queries = self.queries
        if queries == "all":
            judges = "all queries"
        elif isinstance(queries, Stride):
            judges = f"one query in {queries.stride}"
        else:
            judges = f"{queries.representative} representative queries"
        return f"{super().text}, chosen by {self.summary}, {self.relevancy} and {judges} ({self.selection})"

    @model_validator(mode="before")
    @classmethod
    def _a_rule_stands_for_its_words(cls, keys: Any) -> Any:
        words = RULES.get(str(keys.get("rule"))) if isinstance(keys, dict) else None
        if words is None:
            return keys
        for word, value in words.items():
            if keys.get(word, value) != value:
                raise InvalidKeyError(word, f"rule: {keys['rule']} says what {word} is; remove one of them")
        return keys | words

    @model_validator(mode="after")
    def _refresh_divides_chunks(self) -> SpanSection:
        if self.refresh is not None:
            if self.selection != "causal":
                raise InvalidKeyError("refresh", "applies only to selection: causal; remove it or set that")
            for size in self.chunk_sizes:
                if size % self.refresh:
                    raise InvalidKeyError("refresh", f"{self.refresh} does not divide the chunk size {size}")
        return self


class WindowSection(AttentionSection):
    """Every token sees the last tokens before it.

    Attributes:
        kind: `window`.
        window: how many tokens it sees, itself included.
    """

    kind: Literal["window"] = "window"
    window: PositiveInt


class S2Section(AttentionSection):
    """LongLoRA's shifted sparse attention: groups of tokens, half the heads shifted by half a group.

    Attributes:
        kind: `s2`.
        group_size: tokens in a group; default: a quarter of each document.
    """

    kind: Literal["s2"] = "s2"
    group_size: PositiveInt | None = None


class NoMemorySection(_Chunked):
    """Attention inside chunks and nothing else.

    Attributes:
        kind: `none`.
    """

    kind: Literal["none"] = "none"


class RandomSection(_Retrieving):
    """Like `span`, but the retrieved blocks are drawn at random.

    Attributes:
        kind: `random`.
    """

    kind: Literal["random"] = "random"


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


_Section = Annotated[
    FullSection | SpanSection | WindowSection | S2Section | NoMemorySection | RandomSection,
    Field(discriminator="kind"),
]
_Written = _Section | Literal["full", "span", "s2", "none", "random"]
Attention = Annotated[
    _Section,
    BeforeValidator(_kind_alone, json_schema_input_type=_Written),
]
"""The type of an `attention` key; a kind that needs no other key may be written alone: `attention: full`."""
