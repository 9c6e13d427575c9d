"""What lies in an object store comes to a machine once, for all of its processes, and only what is read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from pipelines.errors import EspanError
from pipelines.models.files import local_folder
from pipelines.models.tokenizers import load_tokenizer
from pipelines.prepare.shards import Manifest, ShardReader, TokenizerEntry, write_manifest, write_shard
from pipelines.system import node_cache
from tests.distributed import run_distributed
from tests.real_size.counted_files import HANG_AT, LOG, downloads
from tests.real_size.store_readers import load_weights, read_rows, resume
from tests.se_model.tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
PROCESSES, SHARDS, ROWS, LENGTH = 3, 4, 2, 16


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where downloads are written down; the cache is one of the test's own."""
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    monkeypatch.setenv(node_cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "log"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint in several shards, among files that no loading reads."""
    folder = tmp_path / "store" / "model"
    tiny_model("llama").save_pretrained(folder, max_shard_size="40KB")
    load_tokenizer("builtin:tiny").save_pretrained(folder)
    for name in ("pytorch_model.bin", "optimizer.pt", "README.md"):
        (folder / name).write_bytes(b"not to be read")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "corpus"
    tokens = np.random.default_rng(0).integers(0, 99, (SHARDS, ROWS, LENGTH), dtype=np.int32)
    entries = tuple(write_shard(str(folder), n, tokens[n], [[LENGTH]] * ROWS) for n in range(SHARDS))
    manifest = Manifest(
        split="train",
        packing="documents",
        sequence_length=LENGTH,
        rows=SHARDS * ROWS,
        tokens=tokens.size,
        shards=entries,
        tokenizer=TokenizerEntry(reference="bytes", sha256="0" * 64, vocabulary_size=99, eos_token_id=0),
        sources=(),
        seed=0,
        recipe_hash="",
    )
    write_manifest(str(folder), manifest)
    return folder


def counted(path: Path) -> str:
    return f"counted://{path}"


def test_processes_that_load_a_model_at_once_download_each_file_once(log: Path, model: Path) -> None:
    cache = str(node_cache.cache_root())
    found = run_distributed(load_weights, PROCESSES, str(log), cache, counted(model))
    assert len(set(map(repr, found))) == 1
    read = {path.name: 1 for path in model.iterdir() if path.suffix in (".safetensors", ".json", ".jinja")}
    assert downloads(log) == read
    assert found[0][1] == sorted(read)


def test_those_that_waited_for_a_download_do_not_wait_for_those_that_keep_it(tmp_path: Path) -> None:
    everybody, rounds = 8, 20
    both = Barrier(everybody, timeout=20)

    def keep(_: int) -> list[str]:
        read = []
        for number in range(rounds):
            both.wait()  # all of them miss the entry at once
            with node_cache.borrowed("shards", f"{number}", 7, fill, tmp_path) as path:
                both.wait()  # nobody lets go before all have it
                read.append(path.read_text())
        return read

    def fill(path: Path) -> None:
        with path.open("x") as file:  # once
            file.write("content")

    with ThreadPoolExecutor(everybody) as threads:
        assert list(threads.map(keep, range(everybody))) == [["content"] * rounds] * everybody


def test_another_content_in_the_same_place_is_another_entry(log: Path, model: Path) -> None:
    before = local_folder(counted(model))
    shard = next(model.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes())
    os.utime(shard, (1, 1))
    assert local_folder(counted(model)) not in (before, model)
    assert downloads(log)[shard.name] == 2


def test_processes_that_read_the_same_rows_download_their_shards_once_and_no_others(
    log: Path, corpus: Path
) -> None:
    cache = str(node_cache.cache_root())
    rows = (0, ROWS)  # the first of the first two shards
    found = run_distributed(read_rows, PROCESSES, str(log), cache, counted(corpus), rows)
    local = ShardReader(corpus)
    assert found == [[local.row(row).input_ids.tolist() for row in rows]] * PROCESSES
    assert downloads(log) == {"shard-00000.arrow": 1, "shard-00001.arrow": 1}


def test_workers_that_resume_share_one_copy_of_the_checkpoint(log: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "store" / "step-00000005"
    (checkpoint / "engine").mkdir(parents=True)
    (checkpoint / "engine" / "state.pt").write_bytes(b"optimizer")
    (checkpoint / "COMMITTED").write_text("{}")
    cache = str(node_cache.cache_root())
    found = run_distributed(resume, PROCESSES, str(log), cache, counted(checkpoint))
    assert found == [b"optimizer"] * PROCESSES
    assert downloads(log) == {"state.pt": 1, "COMMITTED": 1}


def test_of_a_model_that_is_named_as_tokenizer_the_tokenizer_alone_is_downloaded(
    log: Path, model: Path
) -> None:
    assert len(load_tokenizer(counted(model))) == len(load_tokenizer("builtin:tiny"))
    load_tokenizer(counted(model))
    assert set(downloads(log).values()) == {1}
    assert not [name for name in downloads(log) if "model" in name or name == "config.json"]


def test_a_process_killed_while_it_downloads_leaves_nothing_whole_and_the_next_goes_on(
    log: Path, model: Path
) -> None:
    *arrived, halted = sorted(path.name for path in model.glob("*.safetensors"))
    program = "import sys; from tests.real_size import counted_files; from pipelines.models.files import "
    program += "local_folder; local_folder(sys.argv[1])"
    killed = subprocess.Popen(
        [sys.executable, "-c", program, counted(model)],
        env=os.environ | {HANG_AT: halted, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while f"half of {halted}" not in downloads(log):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list((node_cache.cache_root() / "models").glob("[!.]*")), "half a model is taken for whole"

    folder = local_folder(counted(model))
    for path in model.glob("*.safetensors"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert Counter({name: downloads(log)[name] for name in (*arrived, halted)}) == dict.fromkeys(
        (*arrived, halted), 1
    ), "what had arrived is downloaded again"


def test_a_download_that_the_disk_has_no_room_for_is_refused_before_it_starts(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        raise AssertionError("downloaded")

    with (
        pytest.raises(EspanError, match=r"needs 1024\.0 TiB for shards, and .* are free.*ESPAN_CACHE"),
        node_cache.borrowed("shards", "x", 1 << 50, fill, tmp_path),
    ):
        pass


def test_a_download_makes_room_of_what_nobody_used_for_a_month_and_nobody_holds(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        path.write_bytes(b"content")

    month_ago = time.time() - 31 * 24 * 3600
    for theirs in (tmp_path / "shards" / "theirs", tmp_path / "models" / "theirs"):
        theirs.mkdir(parents=True)
        os.utime(theirs, (month_ago, month_ago))
    for name in ("unused", "held", "recent"):
        with node_cache.borrowed("shards", name, 7, fill, tmp_path) as path:
            pass
        if name != "recent":
            os.utime(path, (month_ago, month_ago))
    with node_cache.borrowed("shards", "held", 7, fill, tmp_path) as path:
        os.utime(path, (month_ago, month_ago))
        with node_cache.borrowed("shards", "new", 7, fill, tmp_path):
            pass
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {"held", "recent", "new", "theirs"}
    assert (tmp_path / "models" / "theirs").exists(), "another's folder is removed"


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(EspanError, match=r"file cannot be written .*set ESPAN_CACHE"),
        node_cache.borrowed("shards", "x", 1, Path.touch, tmp_path / "file"),
    ):
        pass
