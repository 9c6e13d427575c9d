"""What a restart cannot mend ends a training at once, in one line; what it can mend does not."""

import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import ray.exceptions
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.errors import EspanError
from pipelines.prepare.shards import write_shard
from pipelines.system.disk import explained_writes, write_problem
from pipelines.train.failures import FinalFailure, final_failure, restart_mends
from pipelines.train.restarts import EndAtOnce
from pipelines.train.worker.group import Group
from tests.pipelines.train.conftest import ROOT, MakeJob, write_corpus
from tests.pipelines.train.conftest import alone as alone
from tests.pipelines.train.conftest import corpus as corpus
from tests.pipelines.train.conftest import make_job as make_job
from tests.pipelines.train.trainings import metrics, train_silently

ROWS, LENGTH = 4, 64
PATIENCE_SECONDS = 560

DRIVER = """
import pickle, subprocess, sys
from pathlib import Path
from pipelines.system.cluster_session import close_ray_session
from pipelines.errors import EspanError
from pipelines.context import Context
from pipelines.train.worker.metrics import read_metrics
from pipelines.train.run import run
for stage, output, before in pickle.loads(Path(sys.argv[1]).read_bytes()):
    for command in before:
        subprocess.run(command, check=True)
    Path(output).mkdir(parents=True, exist_ok=True)
    try:
        run(stage, Context("tuned", output, 3, {}, output, {}))
        print("trained", flush=True)
    except EspanError as error:
        print(error, flush=True)
    print(sorted(path.name for path in Path(output, "checkpoints").glob("*")), flush=True)
    print(len(list(Path(output, "tensorboard").glob("*"))), flush=True)
    print([record["loss"] for record in read_metrics(f"{output}/metrics.jsonl")], flush=True)
close_ray_session()
"""


def corpus_with_a_word_that_does_not_exist(folder: Path) -> Path:
    """Every step reads all of its rows; the worker that reads the second fails, the other one does not."""
    write_corpus(folder, rows=ROWS, length=LENGTH, packing="concatenate")
    tokens = np.full((ROWS, LENGTH), 7, np.int32)
    tokens[1, 5] = 1_000_000
    write_shard(str(folder), 0, tokens, [[LENGTH]] * ROWS)
    return folder


def model_with_attention_dropout(folder: Path) -> Path:
    """A model whose dropout an attached attention refuses in its first forward in training."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("llama", **sizes, vocab_size=300, attention_dropout=0.1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_a_failure_that_would_come_again_ends_the_training_without_a_restart(
    make_job: MakeJob, alone: Group, tmp_path: Path
) -> None:
    bug = make_job("bug", data=str(corpus_with_a_word_that_does_not_exist(tmp_path / "bad")), workers=2)
    refused = make_job("refused", model=str(model_with_attention_dropout(tmp_path / "llama")), steps=1)
    # The first checkpoint (about 470 KiB) fits; the second, which is written beside it, does not.
    small_disk = tmp_path / "disk"
    keys = {"steps": 3, "checkpoint_every": 1, "tokens_per_step": 64}
    full, undisturbed = make_job("full", **keys), make_job("undisturbed", **keys)
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small_disk)]
    enlarge = ["mount", "-o", "remount,size=64m", str(small_disk)]
    runs = [
        (bug.keys, bug.output, []),
        (refused.keys, refused.output, []),
        (full.keys, str(small_disk / "run"), [["mkdir", str(small_disk)], mount]),
        (full.keys, str(small_disk / "run"), [enlarge]),
    ]
    (tmp_path / "runs").write_bytes(pickle.dumps(runs))
    environment = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    # In a name space of its own the mount ends with the process, and needs no rights.
    command = ["unshare", "-Urm", sys.executable, "-c", DRIVER, str(tmp_path / "runs")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    said = [lines[start : start + 4] for start in range(0, len(lines), 4)]
    one_start, no_steps = "1", "[]"

    line, *rest = said[0]
    report = re.escape(f"{bug.output}/failure.txt")
    assert re.fullmatch(
        rf"IndexError: index out of range in self \(in \S+, line \d+\); the whole report is in {report}", line
    )
    assert rest == ["[]", one_start, no_steps]
    assert "Traceback" in Path(bug.output, "failure.txt").read_text()

    line, *rest = said[1]
    assert re.match(r"the model refuses micro-batch 0: LlamaAttention asks for attention dropout 0.1", line)
    assert rest == ["[]", one_start, no_steps]

    line, *rest = said[2]
    assert re.fullmatch(
        rf"{re.escape(str(small_disk))}/run/checkpoints/step-00000002\S*: cannot be written: no space left, "
        r"\S+ \S+ free and about \S+ KiB needed; free some or use a larger disk, then run the same command "
        r"again to go on",
        line,
    )
    assert rest[:2] == ["['step-00000001']", one_start]
    train_silently(alone, undisturbed)
    losses = str(metrics(undisturbed, "loss").flatten().tolist())
    assert said[3] == ["trained", "['step-00000002', 'step-00000003']", "2", losses]


def lost_connection() -> Exception:
    try:
        torch.distributed.TCPStore("127.0.0.1", 1, is_master=False, timeout=timedelta(milliseconds=300))
    except Exception as error:
        return error
    raise AssertionError


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.2]:2345"
LOST = [
    lost_connection,
    lambda: RuntimeError(GLOO),
    lambda: torch.distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:77, remote process exited"
    ),
    lambda: ray.exceptions.ActorDiedError(),
    lambda: ray.exceptions.NodeDiedError("the node is gone"),
    lambda: ConnectionResetError("Connection reset by peer"),
    lambda: torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
]
STAYS = [
    lambda: ValueError("packed documents"),
    lambda: EspanError("step 3: the loss is nan"),
    lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
    lambda: MemoryError(),
    lambda: RecursionError("maximum recursion depth exceeded"),
    lambda: OSError(28, "No space left on device"),
    lambda: PermissionError(13, "Permission denied", "/data/model"),
    lambda: torch.AcceleratorError("CUDA error: device-side assert triggered"),
]


@pytest.mark.parametrize("make", LOST)
def test_what_was_lost_is_worth_a_restart(make: Callable[[], Exception]) -> None:
    assert restart_mends(make())


@pytest.mark.parametrize("make", STAYS)
def test_what_would_come_again_is_not_and_is_one_line(make: Callable[[], Exception], tmp_path: Path) -> None:
    error = make()
    assert not restart_mends(error)
    failure = pickle.loads(pickle.dumps(final_failure(error, str(tmp_path))))
    assert failure.line == str(failure)
    assert len(failure.line.splitlines()) == 1
    with pytest.raises(FinalFailure, match=re.escape(failure.line)):
        EndAtOnce().after_exception(None, {1: failure})


@pytest.mark.parametrize(
    ("error", "keys"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            ("micro_batch_rows", "context_parallel", "zero"),
        ),
        (MemoryError(), ("workers", "micro_batch_rows", "activation_checkpointing")),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            ("workers", "micro_batch_rows"),
        ),
    ],
)
def test_memory_that_ran_out_names_the_keys_that_save_some(error: Exception, keys: tuple[str, ...]) -> None:
    line = final_failure(error).line
    assert "memory ran out" in line
    assert all(key in line for key in keys)


def test_what_follows_from_a_lost_worker_ends_nothing_and_the_first_of_several_failures_counts() -> None:
    lost, first, second = (
        ray.exceptions.ActorDiedError(),
        FinalFailure("first", at=1),
        FinalFailure("2nd", at=2),
    )
    EndAtOnce().after_exception(None, {0: second, 1: lost})
    with pytest.raises(FinalFailure, match="first"):
        EndAtOnce().after_exception(None, {0: second, 1: first})


def test_a_worker_killed_for_its_machines_memory_is_started_again_once() -> None:
    killed = {1: ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")}
    callback = EndAtOnce()
    callback.after_exception(None, killed)
    with pytest.raises(FinalFailure, match="because its machine's memory ran out; lower workers"):
        callback.after_exception(None, killed)


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "torch": lambda path: torch.save(torch.zeros(100_000), path),
    "safetensors": lambda path: safetensors.torch.save_file({"a": torch.zeros(100_000)}, path),
    "pyarrow": lambda path: pyarrow.OSFile(str(path), "wb").write(bytes(400_000)),
    "python": lambda path: path.write_bytes(bytes(400_000)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_writes_the_place_is_named(writer: str, tmp_path: Path) -> None:
    folder = tmp_path / "model [1] ü"
    folder.mkdir()
    with small_files(200_000), pytest.raises(EspanError) as caught, explained_writes(str(folder)):
        WRITERS[writer](folder / "weights")
    assert str(caught.value) == (
        f"{folder}: cannot be written: larger than one file may be here (`ulimit -f`)"
    )


def test_what_is_not_about_the_disk_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="iostream"), explained_writes(str(tmp_path)):
        raise TypeError("iostream error")
    assert write_problem(FileNotFoundError(2, "No such file", "x"), str(tmp_path)) is None
