"""A Python program in a process of its own, to be killed with all that it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 240
"""How long a test waits for such a process to do what it waits for."""


@contextmanager
def running_program(code: str, argument: Path, log: Path) -> Iterator[psutil.Popen]:
    """Runs `code` with one argument and appends what it writes to `log`; it ends with all it started."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("a") as written:
        process = psutil.Popen(
            [sys.executable, "-c", code, str(argument)],
            env=environment,
            cwd=ROOT,
            stdout=written,
            stderr=written,
        )
        try:
            yield process
        finally:
            started = process.children(recursive=True) if process.is_running() else []
            for each in [process, *started]:
                if each.is_running():
                    each.kill()
            process.wait()
