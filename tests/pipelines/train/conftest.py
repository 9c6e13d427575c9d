"""A tiny corpus, a tiny model, and worker processes joined by gloo, without Ray."""

import atexit
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.models.tokenizers import load_tokenizer, tokenizer_hash
from pipelines.needles.compose import needle_document
from pipelines.prepare.shards import Manifest, SourceEntry, TokenizerEntry, write_manifest, write_shard
from pipelines.recipe.keys.needles import NEEDLES, NeedleDocuments
from pipelines.recipe.keys.train import TrainKeys
from pipelines.train.job import TrainJob, resolve_job
from pipelines.train.worker.group import Group

# Worker processes import this module by its name below the repository's root.
ROOT = str(Path(__file__).parents[3])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "attn_layer_indices": [1],
    "state_size": 8,
    "mamba_head_dim": 16,
    "num_attention_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "attention_conv_kernel": 4,
}
SPAN = {"kind": "span", "chunk_sizes": [16, 32], "block_size": 8, "top_k": 2}


def write_corpus(folder: Path, rows: int = 13, length: int = 64, packing: str = "documents") -> Path:
    """Shards of random tokens whose rows hold one to three documents."""
    random = np.random.default_rng(5)
    lengths = []
    for _ in range(rows):
        cuts = sorted({int(cut) for cut in random.integers(1, length, random.integers(0, 3))})
        lengths.append(np.diff([0, *cuts, length]).tolist() if packing == "documents" else [length])
    tokens = random.integers(0, 64, (rows, length)).astype(np.int32)
    return _write(folder, tokens, lengths, packing)


def write_needles(folder: Path, rows: int = 4, length: int = 64) -> Path:
    """Shards of needle documents, two in a row."""
    tokenizer = load_tokenizer("builtin:tiny")
    spec = NeedleDocuments(tokens=length // 2, needles=2, questions=2)
    documents = [
        tokenizer(needle_document(spec, seed=5, index=index), add_special_tokens=False)["input_ids"]
        for index in range(2 * rows)
    ]
    tokens = np.array(documents, np.int32).reshape(rows, length)
    source = SourceEntry(
        source=NEEDLES,
        weight=None,
        documents=2 * rows,
        tokens=tokens.size,
        packed_tokens=tokens.size,
        left_out_tokens=0,
        dropped_tokens=0,
        rejected_documents=0,
        encodings={},
    )
    return _write(folder, tokens, [[length // 2] * 2] * rows, "documents", source)


def _write(
    folder: Path, tokens: np.ndarray, lengths: list[list[int]], packing: str, *sources: SourceEntry
) -> Path:
    tokenizer = load_tokenizer("builtin:tiny")
    rows, length = tokens.shape
    folder.mkdir(parents=True)
    manifest = Manifest(
        split="train",
        packing=packing,
        sequence_length=length,
        rows=rows,
        tokens=rows * length,
        shards=(write_shard(str(folder), 0, tokens, lengths),),
        tokenizer=TokenizerEntry(
            reference="builtin:tiny",
            sha256=tokenizer_hash(tokenizer),
            vocabulary_size=len(tokenizer),
            eos_token_id=None,
        ),
        sources=sources,
        seed=5,
        recipe_hash="",
    )
    write_manifest(str(folder), manifest)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "shards")


MakeJob = Callable[..., TrainJob]


@pytest.fixture
def make_job(corpus: Path, tmp_path: Path) -> MakeJob:
    """Makes jobs that train a tiny model on the tiny corpus into `tmp_path/output`."""
    from pipelines.context import Context

    def make(output: str = "out", **keys: Any) -> TrainJob:
        defaults: dict[str, Any] = {
            "data": str(corpus),
            "model": {"new": TINY},
            "attention": SPAN,
            "steps": 6,
            "tokens_per_step": 256,
            "learning_rate": 1e-2,
        }
        folder = tmp_path / output
        folder.mkdir(exist_ok=True)
        stage = TrainKeys.model_validate(defaults | keys)
        return resolve_job(stage, Context(output, str(folder), 3, {}, str(tmp_path), {}))

    return make


def cpu_group(rank: int, size: int) -> Group:
    import torch

    return Group(rank=rank, size=size, local_rank=rank, node=0, device=torch.device("cpu"))


def join_process_group(rank: int, size: int, port: int) -> None:
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)


def ranks_for_deepspeed(rank: int, size: int) -> dict[str, str]:
    """The variables from which DeepSpeed takes who it is."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Group:
    """A group of one worker: this process, which stays in it, since DeepSpeed cannot join another.

    What says so in the environment goes after the test: others would take it for a launcher's.
    """
    import torch.distributed

    if not torch.distributed.is_initialized():
        join_process_group(0, 1, free_port())
        atexit.register(torch.distributed.destroy_process_group)
    for name, value in ranks_for_deepspeed(0, 1).items():
        monkeypatch.setenv(name, value)
    return cpu_group(0, 1)


class Workers:
    """Two processes joined by gloo that run the functions they are handed, at the same time."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls `function(group, *arguments)` in every process; returns the results in order of rank."""
        for connection in self._connections:
            connection.send((function, arguments))
        answers: list[Mapping[str, Any]] = [connection.recv() for connection in self._connections]
        for answer in answers:
            if "error" in answer:
                raise AssertionError(answer["error"])
        return [answer["result"] for answer in answers]


@pytest.fixture(scope="session")
def two_workers() -> Iterator[Workers]:
    context = multiprocessing.get_context("spawn")
    port = free_port()
    processes, connections = [], []
    for rank in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(theirs, rank, 2, port), daemon=True))
        connections.append(ours)
        processes[-1].start()
    yield Workers(connections)
    for process in processes:
        process.kill()
        process.join()


def _serve(connection: Connection, rank: int, size: int, port: int) -> None:
    join_process_group(rank, size, port)
    os.environ |= ranks_for_deepspeed(rank, size)
    while True:
        function, arguments = connection.recv()
        try:
            connection.send({"result": function(cpu_group(rank, size), *arguments)})
        except BaseException:
            connection.send({"error": traceback.format_exc()})
