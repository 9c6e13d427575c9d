"""Which code ran, with which packages, on which machine."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.system.machine import cpu_count, total_memory


@cache
def dependency_versions() -> dict[str, str]:
    """Returns the version of every installed distribution, and of Python."""
    found = {
        dist.metadata["Name"].lower(): dist.version
        for dist in metadata.distributions()
        if dist.metadata["Name"]
    }
    return {"python": platform.python_version(), **dict(sorted(found.items()))}


def decisive_versions() -> dict[str, str]:
    """Returns the versions of what decides a model's numbers, as far as it is installed."""
    versions = dependency_versions()
    names = ("python", "torch", "transformers", "peft", "expansion-span")
    return {name: versions[name] for name in names if name in versions}


@cache
def code_version() -> dict[str, str]:
    """Returns the version of this package and, in a git checkout, the commit it is at."""
    version = dependency_versions().get("expansion-span", "not installed")
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"version": version}
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"version": version, "commit": f"unknown ({type(error).__name__})"}
    return {"version": version, "commit": done.stdout.strip()}


def machine() -> dict[str, Any]:
    """Returns what the stage ran on."""
    return {"platform": platform.platform(), "cpus": cpu_count(), "memory_bytes": total_memory()}
