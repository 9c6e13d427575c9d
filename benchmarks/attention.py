"""Time and memory of span-expanded attention beside its peers: ``python benchmarks/attention.py``."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Runs the command; called as a file, python looks for packages in this folder instead of the root."""
    if not __package__:
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    from benchmarks.command import app

    app()


if __name__ == "__main__":
    main()
