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
ONE_BY_ONE = ("cluster", "pipelines", "s3")
"""Folders whose tests start clusters: all in one process, first, while the other has what needs none."""
LAST = ("real_size", "tuning")
"""Folders that start clusters, too, dealt by file when nothing else is left."""

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
    """Deals files of tests to processes, and all that start clusters to one as long as that takes no longer.

    Many clusters at a time would starve each other of the cores until their start times out.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "clusters" if _folder(file) in ONE_BY_ONE else file


def _folder(nodeid: str) -> str:
    return Path(nodeid.partition("::")[0]).parts[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings tests into the order in which they are dealt."""
    order = dict.fromkeys(ONE_BY_ONE, 0) | dict.fromkeys(LAST, 2)
    items.sort(key=lambda item: order.get(_folder(item.nodeid), 1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    config.option.loadscopereorder = False
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
