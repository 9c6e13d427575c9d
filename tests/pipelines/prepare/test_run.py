"""From sources to shards: the same bytes whatever the parallelism, no token lost, nothing half-done.

Longer than most: every property is tried on the same small corpora, which are made here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.models.tokenizers import load_tokenizer
from pipelines.prepare import parts
from pipelines.prepare import run as build
from pipelines.prepare.run import run
from pipelines.prepare.shards import ShardReader, read_manifest, split_folder
from pipelines.recipe.keys.prepare import PrepareKeys
from pipelines.system import storage
from pipelines.system.cluster_session import close_ray_session

ROOT = Path(__file__).parents[3]
LENGTH = 64
PATIENCE_SECONDS = 300  # with another process that starts; only a hang takes that long
NEEDLES = {"needles": {"tokens": 50, "needles": 2, "questions": 1}, "documents": 600}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two cores, with this process connected to it."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # By its address: without one Ray joins a head that another process of this machine announced.
    started = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield started.address_info["address"]
    close_ray_session()
    ray.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text files of which one is not UTF-8, and JSON lines of which one has no text."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    for number in range(6):
        words = " ".join(["note"] * int(generator.integers(50, 400)))
        (folder / f"{number}.txt").write_text(words)
    (folder / "bad.txt").write_bytes(b"note \xff note")
    documents = [{"text": " ".join(["recall"] * int(generator.integers(1, 90)))} for _ in range(200)]
    lines = [json.dumps(document) for document in (*documents, {"title": "no text"})]
    (folder / "lines.jsonl").write_text("\n".join(lines))
    return folder


def stage(**keys: Any) -> PrepareKeys:
    return PrepareKeys.model_validate({"tokenizer": "builtin:tiny", "sequence_length": LENGTH} | keys)


def prepare(stage: PrepareKeys, output: Path) -> dict[str, Any]:
    return run(stage, Context("corpus", str(output), 17, {}, str(output.parent), recipe={}))  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def tokens_of(folder: Path) -> Counter[int]:
    reader = ShardReader(folder)
    return Counter(token for index in range(len(reader)) for token in reader.row(index).input_ids.tolist())


@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_every_token_is_packed_or_accounted_for(
    cluster: str, corpus: Path, tmp_path: Path, packing: str
) -> None:
    sources = [{"path": str(corpus)}, NEEDLES]
    result = prepare(
        stage(sources=sources, packing=packing, holdout=0.1, rows_per_shard=100), tmp_path / "out"
    )
    train, held = (
        read_manifest(str(tmp_path / "out")),
        read_manifest(split_folder(str(tmp_path / "out"), "holdout")),
    )
    assert (train.rows, held.rows) == (result["rows"], result["holdout_rows"])
    assert len(train.shards) == -(-train.rows // 100) > 3

    tokenizer = load_tokenizer("builtin:tiny").backend_tokenizer
    texts = [file.read_text() for file in sorted(corpus.glob("[0-9].txt"))]
    lines = [json.loads(line) for line in (corpus / "lines.jsonl").read_text().splitlines()]
    texts += [line["text"] for line in lines if "text" in line]
    expected = sum(len(tokenizer.encode(text).ids) + 1 for text in texts)
    files, needles = ([split.sources[source] for split in (train, held)] for source in range(2))
    assert sum(entry.documents for entry in files) == len(texts)
    assert sum(entry.tokens for entry in files) == expected
    assert sum(entry.tokens for entry in needles) == 600 * 51
    assert all(entry.left_out_tokens == 0 for entry in (*files, *needles))
    for split in (train, held):
        assert sum(entry.dropped_tokens for entry in split.sources) < LENGTH
    assert held.tokens == pytest.approx(0.1 * (train.tokens + held.tokens), abs=600)

    counted = tokens_of(tmp_path / "out") + tokens_of(tmp_path / "out" / "holdout")
    end = train.tokenizer.eos_token_id
    assert end is not None
    assert counted[end] == pytest.approx(len(texts) + 600, abs=2 * LENGTH)
    assert counted.total() == train.tokens + held.tokens


def test_bad_documents_are_named_and_the_others_used(cluster: str, corpus: Path, tmp_path: Path) -> None:
    result = prepare(stage(sources=[{"path": str(corpus)}]), tmp_path / "out")
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(Path(each["file"]).name, each["record"]) for each in rejects] == [
        ("bad.txt", None),
        ("lines.jsonl", 201),
    ]
    assert "no field 'text'" in rejects[1]["reason"]
    assert result["rejected_documents"] == 2
    assert "2 documents rejected" in result["headline"]
    assert read_manifest(str(tmp_path / "out")).sources[0].encodings == {"utf-8": 206}


def test_packed_rows_hold_whole_documents_where_they_can(cluster: str, tmp_path: Path) -> None:
    prepare(stage(sources=[NEEDLES], sequence_length=51), tmp_path / "out")
    reader = ShardReader(tmp_path / "out")
    end = reader.manifest.tokenizer.eos_token_id
    assert len(reader) == 600
    for index in range(len(reader)):
        row = reader.row(index)
        assert row.doc_lengths.tolist() == [51]
        assert np.flatnonzero(row.input_ids == end).tolist() == [50]


def test_rows_hold_the_documents_tokens_and_nothing_else(cluster: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    tokenizer = load_tokenizer("builtin:tiny")
    words = sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))
    texts = [" ".join(generator.choice(words, int(generator.integers(1, 200)))) for _ in range(90)]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    expected = [[*tokenizer.backend_tokenizer.encode(text).ids, tokenizer.eos_token_id] for text in texts]
    sources = [{"path": str(tmp_path / "c.jsonl")}]

    prepare(stage(sources=sources, packing="concatenate", rows_per_shard=50), tmp_path / "ends")
    reader = ShardReader(tmp_path / "ends")
    stream = [token for document in expected for token in document]
    rows = [reader.row(index) for index in range(len(reader))]
    assert [token for row in rows for token in row.input_ids.tolist()] == stream[: len(reader) * LENGTH]
    assert {tuple(row.doc_lengths) for row in rows} == {(LENGTH,)}

    prepare(stage(sources=sources, rows_per_shard=50), tmp_path / "documents")
    reader = ShardReader(tmp_path / "documents")
    whole = {tuple(document) for document in expected if len(document) < LENGTH}
    searched = [np.array(document, dtype=np.int32).tobytes() for document in expected]
    for index in range(len(reader)):
        row = reader.row(index)
        for piece in np.split(row.input_ids, np.cumsum(row.doc_lengths)[:-1]):
            whole.discard(tuple(piece.tolist()))
            assert any(piece.tobytes() in document for document in searched)
    assert len(whole) <= 5  # cut, or in the row that was dropped


def test_weights_are_shares_of_the_packed_tokens(cluster: str, corpus: Path, tmp_path: Path) -> None:
    sources = [{"path": str(corpus / "*.txt"), "weight": 0.1}, NEEDLES | {"weight": 0.4}]
    prepare(stage(sources=sources), tmp_path / "out")
    files, needles = read_manifest(str(tmp_path / "out")).sources
    drawn = [entry.packed_tokens + entry.dropped_tokens for entry in (files, needles)]
    assert drawn[0] / sum(drawn) == pytest.approx(0.2, abs=0.02)
    assert min(files.left_out_tokens, needles.left_out_tokens) == 0
    assert max(files.left_out_tokens, needles.left_out_tokens) > 0


def test_two_generated_sources_never_share_a_document(cluster: str, tmp_path: Path) -> None:
    prepare(stage(sources=[NEEDLES, NEEDLES], sequence_length=51), tmp_path / "out")
    reader = ShardReader(tmp_path / "out")
    assert len({reader.row(index).input_ids.tobytes() for index in range(len(reader))}) == 1200


PROGRAM = """
import json, sys
import ray
from pipelines.prepare.run import run
from pipelines.recipe.keys.prepare import PrepareKeys
from pipelines.context import Context
keys, output, address, cpus = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
own = {"address": "local", "num_cpus": int(cpus), "include_dashboard": False}
options = {"address": address} if address else own
ray.init(**options, log_to_driver=False, logging_level="error")
run(PrepareKeys.model_validate(keys), Context("corpus", output, 17, {}, output, recipe={}))
"""


def start(stage: PrepareKeys, output: Path, *, address: str = "", cpus: int = 1) -> subprocess.Popen[bytes]:
    """Starts the stage in a process of its own, on the cluster at `address` or on one of `cpus` cores."""
    output.mkdir(parents=True, exist_ok=True)
    arguments = [json.dumps(stage.model_dump(mode="json")), str(output), address, str(cpus)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], env=environment, cwd=ROOT)


def test_shards_are_the_same_bytes_on_one_core_and_two_and_however_the_corpus_is_cut(
    cluster: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = stage(sources=[{"path": str(corpus)}, NEEDLES], holdout=0.1, rows_per_shard=100)
    prepare(keys, tmp_path / "two")
    monkeypatch.setattr(build, "_SMALLEST_PART", 500)
    monkeypatch.setattr(build, "_LARGEST_PART", 500)
    prepare(keys, tmp_path / "small-parts")
    assert start(keys, tmp_path / "one").wait(timeout=PATIENCE_SECONDS) == 0
    assert content(tmp_path / "two") == content(tmp_path / "small-parts") == content(tmp_path / "one")
    assert any(name.startswith("holdout/shard-") for name in content(tmp_path / "two"))


def wait_for(pattern: str, output: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not list(output.glob(pattern)):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


LONGER = stage(sources=[NEEDLES | {"documents": 6000}], holdout=0.1, rows_per_shard=40)


@pytest.fixture(scope="module")
def undisturbed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run of `LONGER` leaves that nobody kills."""
    output = tmp_path_factory.mktemp("undisturbed")
    prepare(LONGER, output)
    return content(output)


@pytest.mark.parametrize("moment", ["unfinished/part-*.json", "unfinished/train-*.json"])
def test_a_run_killed_at_work_goes_on_to_the_same_bytes(
    cluster: str, undisturbed: dict[str, str], tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "killed"
    process = start(LONGER, output, address=cluster)
    wait_for(moment, output, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(EspanError, match="unfinished"):
        ShardReader(output)

    kept = {file: file.stat().st_mtime_ns for file in output.glob(moment)}
    with monkeypatch.context() as patched:
        patched.setattr(storage, "remove_folder", lambda folder: None)
        prepare(LONGER, output)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept  # what was done is not done again
    storage.remove_folder(parts.work_folder(str(output)))
    assert content(output) == undisturbed


def test_workers_in_another_folder_read_the_same_files_wherever_the_command_runs(
    cluster: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        folder = tmp_path / name
        shutil.copytree(corpus, folder / "books [1]")
        (folder / "books [1]" / "caf\udce9.txt").write_bytes(b"\xff")
        (folder / "books [1]" / ".DS_Store").write_bytes(b"")
        monkeypatch.chdir(folder)
        keys = stage(sources=[{"path": "books [1]"}, NEEDLES])
        result = prepare(keys.absolute(), tmp_path / f"{name}-out")
        assert list(result["passed_over"]) == [f"{folder}/books [1]/.DS_Store"]
        assert "caf\\udce9.txt" in (tmp_path / f"{name}-out" / "rejects.jsonl").read_text()
        (tmp_path / f"{name}-out" / "rejects.jsonl").unlink()
    assert content(tmp_path / "here-out") == content(tmp_path / "there-out")


def test_half_written_files_are_never_taken_for_whole(cluster: str, tmp_path: Path) -> None:
    keys = stage(sources=[NEEDLES])
    prepare(keys, tmp_path / "whole")
    work = tmp_path / "torn" / "unfinished"
    work.mkdir(parents=True)
    (tmp_path / "torn" / "shard-00000.arrow").write_bytes(b"ARROW1 and not much more")
    (work / "part-00000.tokens").write_bytes(b"\0" * 6)
    (work / "part-00000.json").write_text(
        '{"key": "made of something else", "documents": 1, "tokens": 1, "rejected": 0, "encodings": {}}'
    )
    (work / "train-00000.plan").write_bytes(b"\0" * 8)
    prepare(keys, tmp_path / "torn")
    assert content(tmp_path / "torn") == content(tmp_path / "whole")


def test_a_finished_folder_is_not_made_again(cluster: str, tmp_path: Path) -> None:
    keys = stage(sources=[NEEDLES], holdout=0.1)
    first = prepare(keys, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    assert prepare(keys, tmp_path / "out") == first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"sequence_length": 100_000}, "tokens, too few for one row of 100,000; add documents or shorten"),
        ({"holdout": 0.001, "sequence_length": 500}, "the held-out documents have"),
    ],
)
def test_a_corpus_too_small_for_a_row_is_refused(
    cluster: str, tmp_path: Path, keys: dict[str, Any], expected: str
) -> None:
    with pytest.raises(EspanError, match=expected):
        prepare(stage(sources=[NEEDLES], **keys), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_source_without_a_usable_document_is_refused_and_says_why(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(EspanError, match=r"no usable document: 1 were rejected, .*rejects\.jsonl says why"):
        prepare(stage(sources=[{"path": str(tmp_path / "a.txt")}, NEEDLES]), tmp_path / "out")
    assert "not valid utf-8" in (tmp_path / "out" / "rejects.jsonl").read_text()


def test_what_stops_a_worker_reaches_the_user_in_one_line(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not for long")
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b and then nothing")
    for name, expected in (("a.parquet", "not a Parquet file"), ("a.jsonl.gz", "cannot be read to its end")):
        with pytest.raises(EspanError, match=expected) as error:
            prepare(stage(sources=[{"path": str(tmp_path / name)}]), tmp_path / "out")
        assert "\n" not in str(error.value)
