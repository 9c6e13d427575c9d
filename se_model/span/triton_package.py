"""The optional package triton: whether it is installed, and whether its interpreter runs."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def has_triton() -> bool:
    """Whether triton is installed."""
    return find_spec("triton") is not None


def is_interpreting() -> bool:
    """Whether kernels run in triton's interpreter, slowly and on any device (TRITON_INTERPRET=1)."""
    if not has_triton():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)
