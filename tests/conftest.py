"""What must be settled before anything is imported, and left behind by nobody."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest
import torch
from xdist.remote import Producer

from pipelines.kinds import KINDS
from tests.lanes import CLUSTERS, LAST, Lanes
from tuning.kinds import TUNING_KINDS

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings tests into the order in which they are dealt."""
    items.sort(key=lambda item: item.nodeid.startswith(LAST) - item.nodeid.startswith(CLUSTERS))


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


@pytest.fixture(scope="session", autouse=True)
def no_ray_in_the_end() -> Iterator[None]:
    yield
    _end_ray()


@pytest.fixture(scope="module", autouse=True)
def no_ray_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends the Ray that earlier modules' tests started in this process, unless this one shares it."""
    file = request.node.nodeid
    if not any("local_ray" in item.fixturenames for item in _items_of(request)):
        _end_ray()
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        assert file.startswith((*CLUSTERS, *LAST)), f"{file} starts Ray: name it in CLUSTERS"


@pytest.fixture(scope="module")
def local_ray(no_ray_left_behind: None) -> None:
    """This process's own Ray, started once for modules in a row that ask for it: its start takes seconds."""
    from pipelines.system.cluster_session import ray_session

    ray_session()


def _items_of(request: pytest.FixtureRequest) -> list[pytest.Item]:
    return [item for item in request.session.items if item.nodeid.startswith(request.node.nodeid + "::")]


def _end_ray() -> None:
    if (sessions := sys.modules.get("pipelines.system.cluster_session")) is not None:
        sessions.close_ray_session()
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()
