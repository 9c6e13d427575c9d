"""The shard format `espan-shards/1`: a manifest, and Arrow files of packed sequences to be memory-mapped.

    manifest.json        written last and atomically: a folder without one is unfinished
    shard-00000.arrow    Arrow IPC file, uncompressed, one record batch; a row is one packed sequence
        input_ids    fixed_size_list<int32>[L]
        doc_lengths  list<int32>: how the row divides into stretches that attend only to themselves; sums to L

With `packing = "concatenate"` documents run into each other, and `doc_lengths` of every row is `[L]`.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import EspanError
from pipelines.recipe.keys.common import Packing
from pipelines.system import node_cache, storage

MANIFEST = "manifest.json"
Split = Literal["train", "holdout"]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardEntry(_Record):
    """One shard file: its name in the folder, rows, size in bytes and SHA-256."""

    file: str
    rows: Count
    bytes: Count
    sha256: str


class TokenizerEntry(_Record):
    """The tokenizer the tokens come from: what the recipe called it, and its `tokenizers.tokenizer_hash`.

    `bos_token_id` begins each document; it is left out of the file where none does, and so it is missing from
    files older than it.
    """

    reference: str
    sha256: str
    vocabulary_size: Count
    eos_token_id: int | None
    bos_token_id: Annotated[int | None, Field(exclude_if=lambda token: token is None)] = None


class SourceEntry(_Record):
    """What became of one source's tokens in this split: `tokens = packed + left out + dropped`.

    Attributes:
        source: the path as the recipe wrote it, or `needles`.
        weight: the share of all drawn tokens asked for; None where every token is drawn.
        documents: usable documents in this split.
        tokens: their tokens, those that begin and end documents included.
        packed_tokens: tokens that lie in rows.
        left_out_tokens: tokens not drawn, because another source ended first under the weights asked for.
        dropped_tokens: tokens of the last, incomplete row.
        rejected_documents: documents of the source (all splits) that `rejects.jsonl` names.
        encodings: documents of the source (all splits) by the encoding they were read with.
    """

    source: str
    weight: float | None
    documents: Count
    tokens: Count
    packed_tokens: Count
    left_out_tokens: Count
    dropped_tokens: Count
    rejected_documents: Count
    encodings: dict[str, int]

    @model_validator(mode="after")
    def _accounts_for_every_token(self) -> SourceEntry:
        if self.tokens != self.packed_tokens + self.left_out_tokens + self.dropped_tokens:
            raise ValueError(f"tokens of source {self.source} do not add up")
        return self


class Manifest(_Record):
    """`manifest.json`: what the folder holds and where it came from.

    Nothing in it depends on the time, the machine or the place it was written to, but for the path of a
    tokenizer, which is absolute.
    """

    format: Literal["espan-shards/1"] = "espan-shards/1"
    split: Split
    packing: Packing
    sequence_length: Annotated[int, Field(ge=1)]
    rows: Count
    tokens: Count
    shards: tuple[ShardEntry, ...]
    tokenizer: TokenizerEntry
    sources: tuple[SourceEntry, ...]
    seed: int
    recipe_hash: str

    @model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        if self.rows != sum(shard.rows for shard in self.shards):
            raise ValueError("the shards' rows do not add up to `rows`")
        if self.tokens != self.rows * self.sequence_length:
            raise ValueError("`tokens` is not rows * sequence_length")
        if self.sources and self.tokens != sum(source.packed_tokens for source in self.sources):
            raise ValueError("the sources' packed tokens do not add up to `tokens`")
        return self


class Row(NamedTuple):
    """One packed sequence: `input_ids` int32 [L], `doc_lengths` int32 [N]; read-only views of the file."""

    input_ids: np.ndarray
    doc_lengths: np.ndarray


def shard_name(index: int) -> str:
    """Returns the file name of shard `index`."""
    return f"shard-{index:05d}.arrow"


def encode_shard(input_ids: np.ndarray, doc_lengths: Sequence[Sequence[int]]) -> bytes:
    """Returns the bytes of a shard file that holds `input_ids` int32 [R, L] and one list of lengths per row.

    Raises:
        ValueError: shapes or lengths do not fit together.
    """
    rows, sequence_length = input_ids.shape
    if input_ids.dtype != np.int32:
        raise ValueError(f"input_ids must be int32, not {input_ids.dtype}")
    if len(doc_lengths) != rows:
        raise ValueError(f"{len(doc_lengths)} lists of document lengths for {rows} rows")
    for row, lengths in enumerate(doc_lengths):
        if sum(lengths) != sequence_length or min(lengths, default=0) < 1:
            raise ValueError(f"document lengths of row {row} do not sum to {sequence_length}: {lengths}")
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(input_ids.reshape(-1)), sequence_length)
    batch = pa.record_batch([tokens, pa.array(doc_lengths, pa.list_(pa.int32()))], _schema(sequence_length))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def write_shard(
    folder: str, index: int, input_ids: np.ndarray, doc_lengths: Sequence[Sequence[int]]
) -> ShardEntry:
    """Writes shard `index` of `folder` atomically and returns its entry for the manifest."""
    content = encode_shard(input_ids, doc_lengths)
    storage.write_bytes_atomic(storage.join(folder, shard_name(index)), content)
    return ShardEntry(
        file=shard_name(index),
        rows=len(input_ids),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Finishes `folder`: call it when every shard is in place."""
    storage.write_json_atomic(storage.join(folder, MANIFEST), manifest.model_dump(mode="json"))


def read_manifest(folder: str) -> Manifest:
    """Returns the manifest of a finished folder of shards.

    Raises:
        EspanError: the folder is unfinished, or its manifest is not one of this format.
    """
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        raise EspanError(
            f"{folder}: no {MANIFEST}: the shards are unfinished or lie elsewhere; run `prepare` again"
        )
    try:
        return Manifest.model_validate(storage.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise EspanError(
            f"{path}: not a manifest of format espan-shards/1: {where}: {first['msg']}"
        ) from error


def split_folder(folder: str, split: Split) -> str:
    """Returns where the rows of `split` lie, given a prepare stage's folder; each is a folder of shards."""
    return storage.join(folder, "holdout") if split == "holdout" else folder


def _schema(sequence_length: int) -> pa.Schema:
    tokens = pa.list_(pa.int32(), sequence_length)
    return pa.schema([("input_ids", tokens), ("doc_lengths", pa.list_(pa.int32()))])


class _OpenShard(NamedTuple):
    input_ids: np.ndarray  # [R, L]
    doc_offsets: np.ndarray  # [R + 1]
    doc_lengths: np.ndarray  # all rows' lengths, one after the other


class ShardReader:
    """Random access to the rows of a finished folder of shards, without copying: files are memory-mapped.

    Shards of a remote folder are downloaded when first used, checked against their SHA-256 and kept in
    `cache`, where other readers on the machine find them (see `pipelines.system.node_cache`).

    Args:
        folder: a path or an fsspec URL.
        cache: the cache's folder; default: `node_cache.cache_root()`.

    Raises:
        EspanError: no manifest, a wrong one, or files that differ from it in size.
    """

    def __init__(self, folder: str | Path, *, cache: str | Path | None = None) -> None:
        self.folder = str(folder)
        self.manifest = read_manifest(self.folder)
        self._first_rows = [0, *accumulate(shard.rows for shard in self.manifest.shards)]
        self._cache = Path(cache) if cache else None
        self._open: dict[int, _OpenShard] = {}
        if not storage.is_remote(self.folder):
            for entry in self.manifest.shards:
                _check_size(storage.local_path(self._place(entry)), entry)

    @property
    def sequence_length(self) -> int:
        """Tokens in a row."""
        return self.manifest.sequence_length

    def __len__(self) -> int:
        return self.manifest.rows

    def row(self, index: int) -> Row:
        """Returns row `index`, 0 <= index < len(self)."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.folder}")
        shard = bisect_right(self._first_rows, index) - 1
        if shard not in self._open:
            self._open[shard] = self._map(self.manifest.shards[shard])
        opened, within = self._open[shard], index - self._first_rows[shard]
        start, stop = opened.doc_offsets[within : within + 2]
        return Row(opened.input_ids[within], opened.doc_lengths[start:stop])

    def _map(self, entry: ShardEntry) -> _OpenShard:
        if not storage.is_remote(self.folder):
            return _map_shard(storage.local_path(self._place(entry)), entry, self.sequence_length)
        download = partial(_download, self._place(entry), entry)
        name = f"{entry.sha256}.arrow"
        with node_cache.borrowed("shards", name, entry.bytes, download, self._cache) as path:
            # A mapped file stays readable when the cache drops it.
            return _map_shard(path, entry, self.sequence_length)

    def _place(self, entry: ShardEntry) -> str:
        return storage.join(self.folder, entry.file)


def _download(source: str, entry: ShardEntry, target: Path) -> None:
    """Copies a remote shard to `target`.

    Raises:
        EspanError: its content is not what the manifest says.
    """
    storage.download_file(source, target)
    if storage.content_hash(str(target)) != entry.sha256:
        target.unlink()
        raise EspanError(f"{source}: content differs from the manifest (SHA-256); run `prepare` again")


def _check_size(path: Path, entry: ShardEntry) -> None:
    found = path.stat().st_size if path.exists() else None
    if found != entry.bytes:
        state = "is missing" if found is None else f"has {found:,} bytes instead of {entry.bytes:,}"
        raise EspanError(f"{path}: shard {state}; run `prepare` again")


def _map_shard(path: Path, entry: ShardEntry, sequence_length: int) -> _OpenShard:
    _check_size(path, entry)
    reader = pa.ipc.open_file(pa.memory_map(os.fsencode(path)))
    if reader.schema != _schema(sequence_length) or reader.num_record_batches != 1:
        raise EspanError(f"{path}: not a shard of {sequence_length} tokens a row: {reader.schema}")
    batch = reader.get_batch(0)
    lengths = batch.column("doc_lengths")
    return _OpenShard(
        batch.column("input_ids").flatten().to_numpy().reshape(-1, sequence_length),
        lengths.offsets.to_numpy(),
        lengths.values.to_numpy(),
    )
