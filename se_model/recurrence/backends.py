"""The ways to compute a recurrence: what each can serve, and which one is taken.

Every kind has the same three: `library`, kernels of the field; `chunked`, torch on any device, fast; `naive`,
the recurrence as it is written. Each kind's `operator.py` calls them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch

logger = logging.getLogger(__name__)

NAMES = ("library", "chunked", "naive")
_HALVES = frozenset({torch.bfloat16, torch.float16})


def check_name(name: str, what: str) -> None:
    """Refuses a name, of ``what`` in the message, that is neither "auto" nor a backend's.

    Raises:
        ValueError: listing the backends.
    """
    if name not in ("auto", *NAMES):
        raise ValueError(f"{what} must be auto or one of {', '.join(NAMES)}; not {name!r}")


@dataclass(frozen=True)
class Request:
    """What a call asks for.

    Attributes:
        device: its type, such as "cuda".
        dtype: of the values that go into the recurrence.
        initial_state: a state is given that the first token starts from. One that comes from other ranks is
            added after a scan from zero, and asks nothing of a backend.
        sizes: numbers that kernels put limits on, by their names in the kind's table.
    """

    device: str
    dtype: torch.dtype
    initial_state: bool = False
    sizes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Library:
    """The kernels of a package, and what they serve beside CUDA in half precision or float32.

    Attributes:
        package: as pip knows it.
        installed: whether it is.
        initial_state: whether it takes one.
        limits: by the name of a size, whether it is served, and what is said where it is not.
    """

    package: str
    installed: Callable[[], bool]
    initial_state: bool = True
    limits: tuple[tuple[str, Callable[[int], bool], str], ...] = ()

    @property
    def origin(self) -> str:
        """The package with its version, as far as it is known."""
        try:
            return f"package {self.package} {version(self.package)}"
        except PackageNotFoundError:  # importable without being installed, or by a part of it
            return f"package {self.package}"

    def refusal(self, request: Request) -> str | None:
        """Why it cannot serve the request; None if it can."""
        if request.device != "cuda":
            return f"runs on cuda, not on {request.device}"
        if not self.installed():
            return f"needs the package {self.package}, which is not installed (pip install {self.package})"
        if request.dtype not in _HALVES | {torch.float32}:
            return f"does not take {request.dtype}"
        if request.initial_state and not self.initial_state:
            return "starts from zero only"
        return self.limit(dict(request.sizes))

    def limit(self, sizes: Mapping[str, int]) -> str | None:
        """Which of the sizes it does not serve; None if it serves all."""
        for name, serves, words in self.limits:
            if name in sizes and not serves(sizes[name]):
                return f"takes {words}, not {sizes[name]}"
        return None


@dataclass(frozen=True)
class Recurrence:
    """A kind of recurrence.

    Attributes:
        name: for logs, plans and errors.
        library: the kernels that compute it.
        keeps: what the chunked form keeps for backward.
    """

    name: str
    library: Library
    keeps: str

    def resolve(self, wish: str, request: Request) -> str:
        """The name of the backend that is wished for; for "auto" the first that serves, logged once.

        Raises:
            ValueError: if there is no such backend, or it cannot serve the request; says why.
        """
        return _resolve(self, wish, request)


@lru_cache(maxsize=256)
def _resolve(kind: Recurrence, wish: str, request: Request) -> str:
    check_name(wish, f"the backend of {kind.name}")
    if wish in ("chunked", "naive"):
        return wish
    reason = kind.library.refusal(request)
    if wish == "library" and reason is not None:
        raise ValueError(f'backend {wish!r} of {kind.name} {reason}; choose another or "auto"')
    name = "library" if reason is None else "chunked"
    why = f"{kind.library.origin} serves it" if reason is None else f"library {reason}"
    logger.info("%s runs on backend %s for %s: %s", kind.name, name, request, why)
    return name
