"""Which tests are dealt to which process: those that start clusters to one."""

from xdist.scheduler import LoadScopeScheduling

CLUSTERS = (
    "tests/cluster/test_jobs.py",
    "tests/cluster/test_jobs_submit.py",
    "tests/pipelines/evaluate/harness/test_harness.py",
    "tests/pipelines/evaluate/harness/test_ruler.py",
    "tests/pipelines/evaluate/test_context_parallel.py",
    "tests/pipelines/evaluate/test_fleet.py",
    "tests/pipelines/evaluate/test_kill.py",
    "tests/pipelines/evaluate/test_run.py",
    "tests/pipelines/export/test_write.py",
    "tests/pipelines/prepare/test_run.py",
    "tests/pipelines/system/test_cluster_session.py",
    "tests/pipelines/train/",
    "tests/s3/",
)
"""What starts clusters, or shares what takes long to start: all in one process, and first."""
LAST = ("tests/real_size/", "tests/tuning/")
"""Folders that start clusters, too, dealt by file when nothing else is left."""


class Lanes(LoadScopeScheduling):
    """Deals files of tests to processes, and all that start clusters to one as long as that takes no longer.

    Many clusters at a time would starve each other of the cores until their start times out.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "clusters" if file.startswith(CLUSTERS) else file
