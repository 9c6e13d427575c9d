"""Runs a function in several processes that form a gloo group on this machine."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

TIMEOUT = 60
"""Seconds that a collective waits for the other ranks, and that the processes have in all beyond starting."""

# Processes are forked from a server that has imported all this, and has neither threads nor a group.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["torch", "torch.distributed", "se_model", "se_model.hybrid"])


def run_distributed(function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """``[function(rank, ranks, *args) for each rank]``, each in a process of its own with one thread.

    The function is one of a module's own, its arguments and results can be pickled. Of the ranks that fail,
    the first one's exception is raised here, with its traceback as a note; the others are killed.
    """
    call = pickle.dumps((function, args))
    with tempfile.TemporaryDirectory() as folder:
        processes, connections = [], []
        try:
            for rank in range(ranks):
                here, there = _PROCESSES.Pipe(duplex=False)
                process = _PROCESSES.Process(
                    target=_run, args=(rank, ranks, call, folder, there), daemon=True
                )
                process.start()
                there.close()
                processes.append(process)
                connections.append(here)
            results = _collect(connections)
            for process in processes:
                process.join(TIMEOUT)
            return results
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()


def _collect(connections: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + 2 * TIMEOUT
    while len(results) < len(connections):
        waiting = [connection for rank, connection in enumerate(connections) if rank not in results]
        answered = wait(waiting, timeout=max(0, deadline - time.monotonic()))
        ready = [connection for connection in waiting if connection in answered]
        if not ready:
            raise TimeoutError(f"no result from ranks {sorted(set(range(len(connections))) - set(results))}")
        failures = []
        for rank, answer in ((connections.index(c), _receive(c)) for c in ready):
            if answer.error is None:
                results[rank] = answer.result
            else:
                failures.append((answer.time, rank, answer.error, answer.result))
        if failures:
            _, rank, error, text = min(failures, key=lambda failure: failure[0])
            error.add_note(f"on rank {rank} of {len(connections)}:\n{text}")
            raise error
    return [results[rank] for rank in range(len(connections))]


class _Answer(NamedTuple):
    """What a rank returned, or what it raised with its traceback as text, and when."""

    error: Exception | None
    result: Any
    time: float


def _receive(connection: Connection) -> _Answer:
    try:
        return pickle.loads(connection.recv_bytes())
    except EOFError:
        # Last in time: a killed process drags others down, which may say more.
        return _Answer(RuntimeError("died without a word"), "", float("inf"))


def _run(rank: int, ranks: int, call: bytes, folder: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    try:
        function, args = pickle.loads(call)
        dist.init_process_group(
            "gloo",
            init_method=(Path(folder) / "store").as_uri(),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=TIMEOUT),
        )
        answer = pickle.dumps(_Answer(None, function(rank, ranks, *args), time.monotonic()))
        dist.barrier()  # Who leaves early cuts the others' connections.
        dist.destroy_process_group()
    except Exception as error:
        answer = _pickled_failure(error)
    connection.send_bytes(answer)


def _pickled_failure(error: Exception) -> bytes:
    text, now = traceback.format_exc(), time.monotonic()
    try:
        failure = pickle.dumps(_Answer(error, text, now))
        pickle.loads(failure)
    except Exception:
        failure = pickle.dumps(_Answer(RuntimeError(f"{type(error).__name__}: {error}"), text, now))
    return failure
