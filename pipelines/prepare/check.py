"""The prepare stage: the keys a user writes, and the run from sources to finished shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from pipelines.errors import EspanError, InvalidKeyError
from pipelines.models import builtin
from pipelines.models.bos import BosKey
from pipelines.models.tokenizer_answers import bos_of, bos_text_of, check_remembered
from pipelines.models.tokenizers import external_files, pinned
from pipelines.prepare.decompress import zstd_window
from pipelines.prepare.shards import Packing
from pipelines.prepare.sources import (
    NeedlesSource,
    PathSource,
    Source,
    file_size,
    git_lfs_pointers,
    passed_over_text,
    printable,
    zstd_heads,
)
from pipelines.recipe.keys.section import CheckContext, Context, Stage
from pipelines.recipe.path_keys import TOKENIZER, NotEmpty
from pipelines.system import machine, storage
from pipelines.system.listing import PassedOver
from pipelines.system.machine import bytes_text

LARGEST_SHARD = 1 << 28
"""Tokens; a worker holds a shard about three times while it writes it."""

_DEFAULT_SHARD = 1 << 23  # tokens: 32 MiB
_TEXT_BYTES = 4  # of English text for each token of a vocabulary of 50,000
_WORKER_MEMORY = 300 << 20  # a process with its libraries, tokenising English text
_TOKEN_BYTES = 4
_USUAL_WINDOW = 8 << 20  # zstd's at its usual levels


class PrepareStage(Stage):
    """Turns a corpus into packed shards (`shards.py` says what they look like).

    Attributes:
        sources: what the corpus is made of. Either no source has a weight: every token is used, and sources
            mix in proportion to their size. Or each has one: its share of the tokens drawn is its weight
            divided by the sum of the weights; drawing ends when a source has none left, nothing is repeated.
        tokenizer: a hub name (`owner/name`, or `owner/name@revision`), a folder, a `tokenizer.json`, or
            `builtin:tiny`.
        sequence_length: tokens in a row, L.
        packing: `documents`: a row holds documents that do not see each other, as few of them cut as
            possible; `concatenate`: documents run into each other (the paper's).
        end_of_document: end each document with the tokenizer's end-of-document token.
        bos: begin each document with the tokenizer's beginning-of-sequence token; `auto`: if the tokenizer
            does by itself.
        holdout: the share of each source's tokens to set aside, in whole documents, in shards of their own
            below `holdout/`.
        rows_per_shard: rows of a shard file; None: 32 MiB of tokens.
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
        if builtin.is_builtin(reference):
            builtin.builtin(reference)
        return reference

    @model_validator(mode="after")
    def _consistent(self) -> PrepareStage:
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

    def external_inputs(self) -> tuple[str, ...]:
        """Returns the tokenizer's files."""
        return external_files(self.tokenizer)

    def files_read(self) -> tuple[str, ...]:
        """Returns the corpus: the files that are read, not those that are passed over."""
        return tuple(file for source in self._path_sources().values() for file in source.files())

    def check(self, context: CheckContext) -> None:
        """Refuses sources and tokenizers that are not there, and a disk or memory too small for the work."""
        text_bytes = self._text_bytes()
        try:
            check_remembered(self.tokenizer)
        except EspanError as error:
            raise InvalidKeyError("tokenizer", str(error)) from error
        try:
            bos_of(self.tokenizer, self.bos)
        except EspanError as error:
            raise InvalidKeyError("bos", str(error)) from error
        disk = 2 * self._tokens(text_bytes) * _TOKEN_BYTES  # parts and, at the end, shards
        if not storage.is_remote(context.output) and machine.free_disk(context.output) < disk:
            free = bytes_text(machine.free_disk(context.output))
            what = f"packing takes about {bytes_text(disk)} of disk; {free} are free"
            raise InvalidKeyError("sources", f"{what}; choose another workspace")
        for ordinal, (file, window) in self._windows().items():
            if window > machine.available_memory() - _WORKER_MEMORY:
                what = f"{file}: its zstd window takes {bytes_text(window)} of memory while it is read"
                what += f"; {bytes_text(machine.available_memory())} are free; compress it with --long=27"
                raise InvalidKeyError(f"sources.{ordinal}.path", what)
        memory, free_memory = self._worker_memory(), machine.available_memory()
        if free_memory < memory:
            what = f"a worker takes about {bytes_text(memory)} of memory; {bytes_text(free_memory)} are free"
            raise InvalidKeyError("rows_per_shard", f"{what}; fewer rows take less")

    def plan(self, context: CheckContext) -> Mapping[str, str]:
        """Returns an estimate of the corpus in tokens and rows."""
        text_bytes = self._text_bytes()
        tokens = self._tokens(text_bytes)
        rows, kept = tokens // self.sequence_length, tokens * _TOKEN_BYTES
        tokenizer = pinned(self.tokenizer)
        window = max((window for _, window in self._windows().values()), default=0)
        compressed = f", {bytes_text(window)} of them a zstd window" if window > _USUAL_WINDOW else ""
        beginning = None if context.finished else self.beginning()
        return {
            **({} if tokenizer == self.tokenizer else {"tokenizer": tokenizer}),
            "corpus": f"about {tokens:,} tokens, from files of {bytes_text(text_bytes)}",
            "shapes": f"about {rows:,} rows of {self.sequence_length:,} tokens, {self.shard_rows:,} a shard",
            **({"beginning": f"documents begin {beginning}"} if beginning else {}),
            "disk": f"about {bytes_text(kept)}, and as much again while it runs",
            "memory": f"about {bytes_text(self._worker_memory() + window)} per worker{compressed}",
            **self._passed_over_plan(),
        }

    def passed_over(self) -> dict[int, list[PassedOver]]:
        """Returns what lies among each source's files and is not read, by the source's ordinal."""
        found = {ordinal: source.passed_over() for ordinal, source in self._path_sources().items()}
        return {ordinal: over for ordinal, over in found.items() if over}

    def _passed_over_plan(self) -> dict[str, str]:
        found = [one for over in self.passed_over().values() for one in over]
        return {"passed over": passed_over_text(found)} if found else {}

    def _path_sources(self) -> dict[int, PathSource]:
        return {i: source for i, source in enumerate(self.sources) if isinstance(source, PathSource)}

    def _windows(self) -> dict[int, tuple[str, int]]:
        """Returns, of each source with zstd files, the one with the largest window, and that in bytes."""
        found = {}
        for ordinal, source in self._path_sources().items():
            windows = [(file, zstd_window(head)) for file, head in zstd_heads(source.files())]
            if windows:
                found[ordinal] = max(windows, key=lambda each: each[1])
        return found

    def beginning(self) -> str | None:
        """Says how documents begin; None where the tokenizer knows no token for it."""
        return bos_text_of(self.tokenizer, bos_of(self.tokenizer, self.bos), self.bos)

    def _tokens(self, text_bytes: int) -> int:
        """Returns an estimate of the corpus' tokens; compressed files count as if they were not."""
        generated = [source for source in self.sources if isinstance(source, NeedlesSource)]
        return text_bytes // _TEXT_BYTES + sum(each.documents * each.needles.tokens for each in generated)

    def _worker_memory(self) -> int:
        """Returns the bytes a worker takes to tokenise, and to hold a shard thrice while it writes it."""
        return _WORKER_MEMORY + 3 * self.shard_rows * self.sequence_length * _TOKEN_BYTES

    def _text_bytes(self) -> int:
        """Returns the size of all source files.

        Raises:
            InvalidKeyError: a source has no file, nothing in its files, or a Git LFS pointer among them.
        """
        total = 0
        for ordinal, source in self._path_sources().items():
            key = f"sources.{ordinal}.path"
            try:
                sizes = {file: file_size(file) for file in source.files()}
            except InvalidKeyError as error:
                raise InvalidKeyError(key, error.what, error.suggestion) from error
            if not any(sizes.values()):
                raise InvalidKeyError(key, f"every file of '{source.path}' is empty")
            if pointers := git_lfs_pointers(sizes):
                more = f" (and so are {len(pointers) - 1:,} more)" if pointers[1:] else ""
                what = f"{pointers[0]} is a Git LFS pointer{more}; fetch the files with `git lfs pull`"
                raise InvalidKeyError(key, printable(what))
            total += sum(sizes.values())
        return total


def run(stage: PrepareStage, context: Context) -> dict[str, Any]:
    """Prepares the shards in `context.output`; work that an interrupted run finished is kept.

    Raises:
        EspanError: no document is usable, too few for one row, or a file cannot be read to its end.
    """
    from pipelines.prepare.run import (
        build,
    )  # Ray and the tokenizer's libraries load only when they are used

    return build(stage, context)
