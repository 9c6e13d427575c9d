"""Checkpoints for another number of workers, through DeepSpeed's universal format."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import EspanError
from pipelines.system.plain_path import plain_path
from pipelines.train.worker.checkpoints import ENGINE_FOLDER
from pipelines.train.worker.group import Group

UNIVERSAL_FOLDER = "universal"


@contextmanager
def universal_copy(folder: Path, group: Group) -> Iterator[Path]:
    """Yields a local folder in which `UNIVERSAL_FOLDER` holds the universal form of `folder/ENGINE_FOLDER`.

    Each node makes its own copy, which is removed in the end. Every worker calls it.

    Raises:
        EspanError: DeepSpeed's converter failed.
    """
    with tempfile.TemporaryDirectory(prefix="espan-universal-") as own:
        target = plain_path(Path(own), globbed=True)
        group.agree(
            lambda: _convert(folder / ENGINE_FOLDER, target / UNIVERSAL_FOLDER) if group.first_here else None
        )
        copies = dict(group.gather((group.node, own) if group.first_here else (-1, "")))
        yield Path(copies[group.node])
        group.barrier()


def _convert(source: Path, target: Path) -> None:
    # A process of its own: the converter forks workers and prints its progress.
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(plain_path(source, globbed=True)), "--output_folder", str(target)]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        lines = finished.stderr.strip().splitlines() or ["no message"]
        raise EspanError(f"DeepSpeed cannot convert {source} for another number of workers: {lines[-1]}")
