"""What must be settled before anything is imported, and left behind by nobody."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from pipelines.kinds import KINDS
from tuning.kinds import TUNING_KINDS

TESTS = Path(__file__).parent
STARTS_CLUSTERS = ("cluster", "pipelines", "real_size", "s3", "tuning")

KINDS.update(TUNING_KINDS)  # as the command does

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Test processes share the cores: with a thread per core in each of them they would wait for each other.
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

if "ESPAN_CACHE" not in os.environ:
    # Tests change code while it runs: what it answers then must not be remembered for the user.
    os.environ["ESPAN_CACHE"] = tempfile.mkdtemp(prefix="espan-cache-")
    atexit.register(shutil.rmtree, os.environ["ESPAN_CACHE"], ignore_errors=True)

if not torch.cuda.is_available():
    # triton reads this when a kernel is defined: without a GPU, kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


class Lanes(LoadScopeScheduling):
    """Deals tests to processes: those that may start Ray to one, so that one cluster starts at a time.

    Several would starve each other of the cores until their start times out. All others go by file.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "clusters" if Path(file).parts[1] in STARTS_CLUSTERS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    return Lanes(config, log)


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Takes back what a test, or a library in it, set in the environment: accelerate leaves ranks there."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def no_ray_left_behind() -> Iterator[None]:
    """Ends the Ray that a module's tests started in this process: the next module begins without one."""
    yield
    if (sessions := sys.modules.get("pipelines.system.cluster_session")) is not None:
        sessions.close_ray_session()
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()
