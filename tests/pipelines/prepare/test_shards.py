"""The shard format: what is written comes back, without a copy; what is unfinished or damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipelines.errors import EspanError
from pipelines.prepare.shards import (
    Manifest,
    ShardReader,
    SourceEntry,
    TokenizerEntry,
    encode_shard,
    shard_name,
    write_manifest,
    write_shard,
)

LENGTH = 6
ROWS = np.arange(5 * LENGTH, dtype=np.int32).reshape(5, LENGTH)
DOC_LENGTHS = [[6], [1, 5], [2, 2, 2], [3, 3], [6]]


def manifest(**changes: object) -> dict[str, object]:
    content: dict[str, object] = {
        "split": "train",
        "packing": "documents",
        "sequence_length": LENGTH,
        "rows": 5,
        "tokens": 5 * LENGTH,
        "shards": (),
        "tokenizer": TokenizerEntry(reference="t", sha256="0", vocabulary_size=99, eos_token_id=None),
        "sources": (),
        "seed": 1,
        "recipe_hash": "0",
    }
    return content | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = (
        write_shard(str(tmp_path), 0, ROWS[:2], DOC_LENGTHS[:2]),
        write_shard(str(tmp_path), 1, ROWS[2:], DOC_LENGTHS[2:]),
    )
    write_manifest(str(tmp_path), Manifest.model_validate(manifest(shards=shards)))
    return tmp_path


def test_rows_come_back_in_any_order(folder: Path) -> None:
    reader = ShardReader(folder)
    assert (len(reader), reader.sequence_length) == (5, LENGTH)
    for index in (4, 0, 3, 1, 2):
        row = reader.row(index)
        assert row.input_ids.dtype == row.doc_lengths.dtype == np.int32
        assert row.input_ids.tolist() == ROWS[index].tolist()
        assert row.doc_lengths.tolist() == DOC_LENGTHS[index]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            reader.row(index)


def test_rows_are_views_of_the_mapped_file(folder: Path) -> None:
    before = pa.total_allocated_bytes()
    reader = ShardReader(folder)
    first, second = reader.row(2).input_ids, reader.row(3).input_ids
    assert not first.flags.owndata
    assert not first.flags.writeable
    assert second.ctypes.data - first.ctypes.data == LENGTH * 4
    assert pa.total_allocated_bytes() == before


def test_the_file_is_arrow_as_documented(folder: Path) -> None:
    with pa.OSFile(str(folder / shard_name(0))) as file:
        table = pa.ipc.open_file(file).read_all()
    assert table.schema.field("input_ids").type == pa.list_(pa.int32(), LENGTH)
    assert table.schema.field("doc_lengths").type == pa.list_(pa.int32())
    assert table.to_pydict() == {"input_ids": ROWS[:2].tolist(), "doc_lengths": DOC_LENGTHS[:2]}


def test_a_folder_without_a_manifest_is_unfinished(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(EspanError, match=r"no manifest\.json.*unfinished"):
        ShardReader(folder)


@pytest.mark.parametrize("damage", ["short", "missing"])
def test_a_shard_that_is_not_what_the_manifest_says_is_refused(folder: Path, damage: str) -> None:
    shard = folder / shard_name(1)
    if damage == "short":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    with pytest.raises(EspanError, match=rf"{shard}: shard "):
        ShardReader(folder)


def test_a_shard_of_another_row_length_is_refused(folder: Path) -> None:
    content = encode_shard(np.zeros((2, LENGTH + 1), dtype=np.int32), [[LENGTH + 1]] * 2)
    (folder / shard_name(0)).write_bytes(content)
    record = json.loads((folder / "manifest.json").read_text())
    record["shards"][0]["bytes"] = len(content)
    (folder / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(EspanError, match="not a shard of 6 tokens a row"):
        ShardReader(folder).row(0)


@pytest.mark.parametrize("change", [{"format": "espan-shards/2"}, {"rows": 6}, {"unknown": 1}])
def test_a_manifest_that_is_none_is_refused(folder: Path, change: dict[str, object]) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(record | change))
    with pytest.raises(EspanError, match=r"manifest\.json: not a manifest of format espan-shards/1"):
        ShardReader(folder)


def test_rows_that_do_not_fit_the_format_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1 do not sum to 6"):
        encode_shard(ROWS[:2], [[6], [5]])
    with pytest.raises(ValueError, match="1 lists of document lengths for 2 rows"):
        encode_shard(ROWS[:2], [[6]])
    with pytest.raises(ValueError, match="int32"):
        encode_shard(ROWS[:2].astype(np.int64), [[6], [6]])


def test_an_account_that_loses_a_token_is_refused() -> None:
    account = {"source": "s", "weight": None, "documents": 1, "rejected_documents": 0, "encodings": {}}
    parts = {"packed_tokens": 6, "left_out_tokens": 2, "dropped_tokens": 1}
    assert SourceEntry.model_validate(account | parts | {"tokens": 9}).tokens == 9
    with pytest.raises(ValidationError, match="do not add up"):
        SourceEntry.model_validate(account | parts | {"tokens": 10})
