"""One small run for all tests, and a result spelt out by hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.records import _compare
from benchmarks.run import FORMAT

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--heads 2 --head-dim 8 --chunk-sizes 16 --block-size 4 --top-k 2 --repeats 2 --seconds 0".split()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str], dict[str, Any]]:
    """Where its JSON file lies, the finished process, and what the file says."""
    output = tmp_path_factory.mktemp("run") / "new" / "attention-cpu.json"
    lengths = ["--lengths", "20,50", "--forward-lengths", "90", "--threads", "1"]
    command = [sys.executable, "benchmarks/attention.py", "--device", "cpu", *SMALL, *lengths]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return output, done, json.loads(output.read_text())


def record(length: int, attention: str, seconds: float, peak: int, **more: Any) -> dict[str, Any]:
    """Forward and backward take three times the seconds and the bytes of a forward call."""
    return {
        "length": length, "attention": attention, "flops": 1000, "choice_flops": 0,
        "forward": {"seconds": seconds, "samples": [seconds], "peak_bytes": peak, "extra_bytes": peak // 2},
        "forward_backward": {
            "seconds": 3 * seconds, "samples": [3 * seconds], "peak_bytes": 3 * peak, "extra_bytes": peak
        },
        **more,
    }  # fmt: skip


@pytest.fixture
def make_result():
    """A result of the small preset on a CPU, or of the paper's on a GPU, that holds the records given."""

    def make(records: list[dict[str, Any]], device: str = "cpu", **setting: Any) -> dict[str, Any]:
        small = device == "cpu"
        for one in records:
            same = (other for other in records if other["length"] == one["length"])
            _compare(one, next((other for other in same if other["attention"] == "SDPA full"), {}))
        return {
            "format": FORMAT, "measured": "2026-01-02T00:00:00+00:00", "reference": "SDPA full",
            "reference_kernel": "flash" if small else "cuDNN",
            "machine": {
                "processor": "a processor", "gpu": None if small else "a GPU",
                "threads": 2, "load_before": 0.1,
            },
            "versions": {"torch": "2.13.0", "code": {"commit": "abc"}},
            "setting": {
                "heads": 4 if small else 30, "kv_heads": 4 if small else 30, "head_dim": 64 if small else 128,
                "chunk_sizes": [2048] if small else [2048, 4096], "block_size": 32, "top_k": 8,
                "window": 2048, "device": device, "dtype": "float32" if small else "bfloat16", "batch": 1,
                **setting,
            },
            "results": records, "left_out": [],
        }  # fmt: skip

    return make


@pytest.fixture
def make_record():
    return record
