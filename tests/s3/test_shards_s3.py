"""Shards written to and read from an object store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import EspanError
from pipelines.prepare.shards import (
    Manifest,
    ShardReader,
    TokenizerEntry,
    read_manifest,
    shard_name,
    write_manifest,
    write_shard,
)
from pipelines.system import storage

ROWS_PER_SHARD, SHARDS, LENGTH = 3, 2, 16


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 99, (SHARDS, ROWS_PER_SHARD, LENGTH), dtype=np.int32)


@pytest.fixture
def corpus(bucket: str, rows: np.ndarray) -> str:
    folder = storage.join(bucket, "run", "corpus")
    lengths = [[LENGTH - 5, 5]] * ROWS_PER_SHARD
    entries = tuple(write_shard(folder, index, rows[index], lengths) for index in range(SHARDS))
    write_manifest(
        folder,
        Manifest(
            split="train",
            packing="documents",
            sequence_length=LENGTH,
            rows=SHARDS * ROWS_PER_SHARD,
            tokens=rows.size,
            shards=entries,
            tokenizer=TokenizerEntry(reference="bytes", sha256="0" * 64, vocabulary_size=99, eos_token_id=0),
            sources=(),
            seed=17,
            recipe_hash="0" * 64,
        ),
    )
    return folder


def test_every_row_comes_back_through_the_cache(corpus: str, rows: np.ndarray, tmp_path: Path) -> None:
    reader = ShardReader(corpus, cache=tmp_path)
    assert len(reader) == SHARDS * ROWS_PER_SHARD
    for index, expected in enumerate(rows.reshape(-1, LENGTH)):
        row = reader.row(index)
        assert np.array_equal(row.input_ids, expected)
        assert row.doc_lengths.tolist() == [LENGTH - 5, 5]
    assert len(list((tmp_path / "shards").iterdir())) == SHARDS


def test_a_shard_whose_bytes_differ_from_the_manifest_is_refused(corpus: str, tmp_path: Path) -> None:
    place = storage.join(corpus, shard_name(0))
    content = bytearray(storage.read_bytes(place))
    content[len(content) // 2] ^= 1
    storage.write_bytes_atomic(place, bytes(content))
    with pytest.raises(EspanError, match=shard_name(0)):
        ShardReader(corpus, cache=tmp_path).row(0)
    assert not list((tmp_path / "shards").iterdir())


def test_shards_without_a_manifest_are_unfinished(bucket: str, rows: np.ndarray) -> None:
    folder = storage.join(bucket, "killed")
    write_shard(folder, 0, rows[0], [[LENGTH]] * ROWS_PER_SHARD)
    with pytest.raises(EspanError, match="unfinished"):
        read_manifest(folder)
