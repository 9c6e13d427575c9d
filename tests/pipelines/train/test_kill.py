"""The whole of training under Ray, with processes that are killed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.train.job import TrainJob
from pipelines.train.worker.sole_writer import sole_writer
from tests.pipelines.train.conftest import MakeJob, Workers
from tests.pipelines.train.drivers import driver
from tests.pipelines.train.trainings import metrics, train_silently
from tests.processes import PATIENCE_SECONDS

STEPS = 30


def wait_for(condition: Callable[[], bool], process: psutil.Popen, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)


def steps_done(job: TrainJob) -> int:
    path = Path(job.output, "metrics.jsonl")
    return len(path.read_text().splitlines()) if path.exists() else 0


def train_worker(process: psutil.Popen) -> psutil.Process:
    names = {each.pid: " ".join(each.cmdline()) for each in process.children(recursive=True)}
    return psutil.Process(max(pid for pid, name in names.items() if name.startswith("ray::RayTrainWorker")))


@pytest.mark.timeout(1200)  # three drivers, each with a cluster of its own
def test_after_killing_a_worker_and_then_the_driver_every_step_has_the_loss_of_an_undisturbed_run(
    make_job: MakeJob, two_workers: Workers, tmp_path: Path
) -> None:
    """With rows of their own, and with workers that share rows; one driver goes on with both."""
    pairs = []
    for context_parallel in (1, 2):
        keys = {"steps": STEPS, "workers": 2, "checkpoint_every": 4, "learning_rate": 1e-3}
        # Workers that share rows run more of them, and longer: a step takes about as long.
        keys |= {"context_parallel": context_parallel, "tokens_per_step": 2048 // context_parallel**2}
        undisturbed, killed = (
            make_job(f"{name}-{context_parallel}", **keys) for name in ("undisturbed", "killed")
        )
        two_workers.run(train_silently, undisturbed)
        kill_a_worker_and_then_the_driver(killed, tmp_path)
        pairs.append((undisturbed, killed))

    with driver(tmp_path, *(killed for _, killed in pairs)) as process:
        assert process.wait(2 * PATIENCE_SECONDS) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    names = ("step", "loss", "gradient_norm", "learning_rate", "tokens_seen")
    for undisturbed, killed in pairs:
        assert torch.equal(metrics(killed, *names), metrics(undisturbed, *names))
        assert Path(killed.output, "model.json").exists()
        left, right = (
            Path(job.output, "model", "model.safetensors").read_bytes() for job in (killed, undisturbed)
        )
        assert left == right


def kill_a_worker_and_then_the_driver(job: TrainJob, folder: Path) -> None:
    log = folder / "driver.log"
    with driver(folder, job) as process:
        wait_for(lambda: steps_done(job) >= 1, process, log)
        worker = train_worker(process)  # to look for it takes as long as some steps
        wait_for(lambda: steps_done(job) >= 6, process, log)
        os.kill(worker.pid, signal.SIGKILL)
        at_kill = steps_done(job)
        assert at_kill < STEPS - 8, "the worker was killed too late to be missed"
        # Ray Train restarts the workers, which drop the steps after the checkpoint and run them again.
        wait_for(lambda: steps_done(job) > at_kill + 2, process, log)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with sole_writer(job.output, PATIENCE_SECONDS):  # workers train on until Ray ends them
        assert 8 < steps_done(job) < STEPS
        assert not Path(job.output, "model.json").exists()
