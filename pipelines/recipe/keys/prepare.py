"""The keys of a prepare stage: what a corpus is made of, and what its rows look like."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pipelines.errors import InvalidKeyError
from pipelines.recipe.encodings import known_encoding
from pipelines.recipe.keys.common import BosKey, Packing
from pipelines.recipe.keys.needles import NeedleDocuments
from pipelines.recipe.keys.ruler import RulerDocuments
from pipelines.recipe.keys.section import Section, StageKeys
from pipelines.recipe.path_keys import TOKENIZER, NotEmpty, Path
from pipelines.recipe.references import builtin_name, is_builtin

LARGEST_SHARD = 1 << 28
"""Tokens; a worker holds a shard about three times while it writes it."""

_DEFAULT_SHARD = 1 << 23  # tokens: 32 MiB

Weight = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]


class PathSource(Section):
    """Documents in files.

    A `.txt` file is one document; a `.jsonl` or `.ndjson` file has one on each line, a `.json` file likewise,
    or in each element of an array, or is one; a `.parquet` file has one in each row; in the field `text`. All
    but the last may be compressed: `.gz`, `.zst`, `.bz2`, `.xz`. Case does not matter. Byte-order marks are
    stripped, and line ends of text files become line feeds.

    Attributes:
        path: a file, a folder (everything below it whose ending is known) or a pattern; a path or an fsspec
            URL. Hidden files and what editors leave behind are skipped.
        text: the field of a JSON object or Parquet row that holds the document.
        weight: this source's share of all drawn tokens; see `sources`.
        encoding: of text and JSON: any of Python's, or `auto`: by the byte-order mark, else UTF-8 and, where
            a document is not valid UTF-8, Latin-1.
    """

    path: Path
    text: Annotated[str, Field(min_length=1)] = "text"
    weight: Weight = None
    encoding: str = "utf-8"

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        return known_encoding(encoding)


class NeedlesSource(Section):
    """Generated documents: filler text with needles and questions about them.

    The documents differ from those of every other source and stage of the recipe, whatever their settings.

    Attributes:
        needles: what a document looks like.
        documents: how many to generate.
        weight: this source's share of all drawn tokens; see `sources`.
    """

    needles: NeedleDocuments
    documents: Annotated[int, Field(ge=1)]
    weight: Weight = None


class RulerSource(Section):
    """Generated documents: prompts of RULER's tasks, each with the right answer behind it.

    The documents differ from those of every other source and stage of the recipe, whatever their settings,
    and from the prompts that evaluations give.

    Attributes:
        ruler: what a document looks like.
        documents: how many to generate; of one that cannot be made so short as asked for, a line is left in
            `rejects.jsonl` instead.
        weight: this source's share of all drawn tokens; see `sources`.
    """

    ruler: RulerDocuments
    documents: Annotated[int, Field(ge=1)]
    weight: Weight = None


def _kind(value: Any) -> str:
    for key, source in (("needles", NeedlesSource), ("ruler", RulerSource)):
        if key in value if isinstance(value, dict) else isinstance(value, source):
            return f"{key} source"
    return "path source"


Source = Annotated[
    Annotated[PathSource, Tag("path source")]
    | Annotated[NeedlesSource, Tag("needles source")]
    | Annotated[RulerSource, Tag("ruler source")],
    Discriminator(_kind),
]
AnySource = PathSource | NeedlesSource | RulerSource
"""A source, whatever it is made of."""


class PrepareKeys(StageKeys):
    """The keys below `prepare:`.

    Attributes:
        sources: what the corpus is made of. Either no source has a weight: every token is used, and sources
            mix in proportion to their size. Or each has one: its share of the tokens drawn is its weight
            divided by the sum of the weights; drawing ends when a source has none left, nothing is repeated.
        tokenizer: a hub name (`owner/name`, or `owner/name@revision`), a folder, a `tokenizer.json`, or
            `builtin:tiny` or `builtin:ruler-tiny`.
        sequence_length: tokens in a row, L.
        packing: `documents`: a row holds documents that do not see each other, as few of them cut as
            possible; `concatenate`: documents run into each other (the paper's).
        end_of_document: end each document with the tokenizer's end-of-document token.
        bos: begin each document with the tokenizer's beginning-of-sequence token; `auto`: if the tokenizer
            does so by default.
        holdout: the share of each source's tokens to set aside, in whole documents, in shards of their own
            below `holdout/`.
        rows_per_shard: rows of a shard file; default: 32 MiB of tokens.
    """

    sources: tuple[Source, ...]
    tokenizer: Annotated[str, NotEmpty, TOKENIZER]
    sequence_length: Annotated[int, Field(ge=2, le=LARGEST_SHARD)]
    packing: Packing = "documents"
    end_of_document: bool = True
    bos: BosKey = "auto"
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rows_per_shard: Annotated[int, Field(ge=1)] | None = None

    @field_validator("tokenizer")
    @classmethod
    def _ships(cls, reference: str) -> str:
        if is_builtin(reference):
            builtin_name(reference)
        return reference

    @model_validator(mode="after")
    def _consistent(self) -> PrepareKeys:
        if not self.sources:
            raise InvalidKeyError("sources", "needs at least one source")
        unweighted = [i for i, source in enumerate(self.sources) if source.weight is None]
        if 0 < len(unweighted) < len(self.sources):
            raise InvalidKeyError(
                f"sources.{unweighted[0]}", "has no weight, but other sources have; give all a weight or none"
            )
        if self.shard_rows * self.sequence_length > LARGEST_SHARD:
            most = LARGEST_SHARD // self.sequence_length
            raise InvalidKeyError(
                "rows_per_shard", f"a shard would hold more than 1 GiB; {most:,} rows at most"
            )
        return self

    @property
    def shard_rows(self) -> int:
        """Rows of a shard file."""
        return self.rows_per_shard or max(1, _DEFAULT_SHARD // self.sequence_length)

    @property
    def path_sources(self) -> dict[int, PathSource]:
        """The sources that are files, by their ordinals."""
        return {i: source for i, source in enumerate(self.sources) if isinstance(source, PathSource)}

    @property
    def ruler_sources(self) -> dict[int, RulerSource]:
        """The sources of RULER's documents, by their ordinals."""
        return {i: source for i, source in enumerate(self.sources) if isinstance(source, RulerSource)}
