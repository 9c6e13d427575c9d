"""A process that runs train stages on its own Ray, to be killed."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipelines.train.job import TrainJob
from tests.processes import running_program

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
    with running_program(DRIVER, task, folder / "driver.log") as process:
        yield process
