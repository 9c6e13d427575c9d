"""A node that is taken away with notice costs a training no failure."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.train.restarts import failure_config
from tests.pipelines.train.conftest import ROOT, MakeJob
from tests.pipelines.train.conftest import corpus as corpus
from tests.pipelines.train.conftest import make_job as make_job
from tests.pipelines.train.trainings import metrics

PATIENCE_SECONDS = 300

DRIVER = """
import pickle, sys, threading, time
from pathlib import Path

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray._private.state import available_resources_per_node
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from pipelines.context import Context
from pipelines.train.worker.metrics import read_metrics
from pipelines.train.run import run

PREEMPTION = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
stage, output = pickle.loads(Path(sys.argv[1]).read_bytes())
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
SECONDS = 1.5


def take_the_node_away() -> None:
    while len(read_metrics(f"{output}/metrics.jsonl")) < 3:
        time.sleep(0.05)
    free = available_resources_per_node()
    (spot,) = [node for node in nodes if not free.get(node.node_id, {}).get("CPU")]
    accepted, why = GcsClient(address=cluster.address).drain_node(
        spot.node_id, PREEMPTION, "spot", int((time.time() + SECONDS) * 1000)
    )
    print("drained" if accepted else why, flush=True)
    time.sleep(SECONDS + 0.5)
    cluster.remove_node(spot, allow_graceful=False)


try:
    ray.init(address=cluster.address, log_to_driver=False)
    threading.Thread(target=take_the_node_away, daemon=True).start()
    print(run(stage, Context("tuned", output, 3, {}, output, {})), flush=True)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_a_training_without_a_failure_to_spare_goes_on_after_its_node_was_taken_away(
    make_job: MakeJob, tmp_path: Path
) -> None:
    keys = {"steps": 40, "tokens_per_step": 2048, "checkpoint_every": 1000, "learning_rate": 1e-3}
    job = make_job("taken", **keys, max_failures=0)
    (tmp_path / "job").write_bytes(pickle.dumps((job.keys, job.output)))
    environment = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "job")],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-3000:]
    assert "drained" in printed, errors[-3000:]
    assert metrics(job, "step").flatten().tolist() == list(range(1, 41))
    starts = list(Path(job.output, "tensorboard").glob("*"))
    assert len(starts) == 2, "the training ended before its node was taken away, or started more than twice"


@pytest.mark.parametrize(("key", "limit"), [(None, -1), (0, 0), (5, 5)])
def test_preemptions_have_no_limit_unless_one_is_given(key: int | None, limit: int) -> None:
    config = failure_config(3, key)
    assert (config.max_failures, config.max_preemption_failures) == (3, limit)
