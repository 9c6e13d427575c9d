"""A process that runs train stages on its own Ray, to be killed."""

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipelines.train.job import TrainJob
from tests.pipelines.train.conftest import ROOT

PATIENCE_SECONDS = 240

DRIVER = """
import pickle, sys
from pathlib import Path
from pipelines.system.cluster_session import close_ray_session
from pipelines.context import Context
from pipelines.train.run import run
for keys, output, seed in pickle.loads(Path(sys.argv[1]).read_bytes()):
    print(run(keys, Context("tuned", output, seed, {}, output, {})), flush=True)
close_ray_session()
"""


@contextmanager
def driver(folder: Path, *jobs: TrainJob) -> Iterator[psutil.Popen]:
    """A process that runs train stages as `espan run` does, one after another, on its own Ray.

    It ends with all it started.
    """
    task = folder / "tasks"
    task.write_bytes(pickle.dumps([(job.keys, job.output, job.seed) for job in jobs]))
    environment = os.environ | {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    log = (folder / "driver.log").open("a")
    process = psutil.Popen(
        [sys.executable, "-c", DRIVER, str(task)], env=environment, cwd=ROOT, stdout=log, stderr=log
    )
    try:
        yield process
    finally:
        started = process.children(recursive=True) if process.is_running() else []
        for each in [process, *started]:
            if each.is_running():
                each.kill()
        process.wait()
        log.close()
