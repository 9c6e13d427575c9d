"""Two trainings never write one folder at the same time."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.errors import EspanError
from pipelines.train.worker.sole_writer import sole_writer

HOLDER = """
import sys, time
from pipelines.train.worker.sole_writer import sole_writer
with sole_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    root = Path(__file__).parents[4]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(EspanError, match="still being written"),
            sole_writer(str(tmp_path), patience_seconds=0.2),
        ):
            pass
        holder.kill()
    began = time.monotonic()
    with sole_writer(str(tmp_path), patience_seconds=10):
        assert time.monotonic() - began < 5


def test_the_folder_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with sole_writer(str(tmp_path), patience_seconds=0):
            pass
