"""Finds the token that proves to a Ray head that a request may run code on its cluster.

The search order is Ray's own (`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`), with a path
given on the command line before all of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import EspanError

TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
HOW_TO_GIVE_A_TOKEN = f"give --token-path FILE or set {TOKEN_PATH_VARIABLE}"


@dataclass(frozen=True)
class Token:
    """A secret and where it came from; the secret is not in `repr`, and so never in a message or log."""

    secret: str = field(repr=False)
    origin: str

    def headers(self) -> dict[str, str]:
        """HTTP headers that carry the token."""
        return {"Authorization": f"Bearer {self.secret}"}


def find_token(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Token | None:
    """The first token there is, or None when no place names one.

    Args:
        path: a file that holds the token and nothing else; goes before every other place.
        environment: the variables to look in; this process's by default.

    Raises:
        EspanError: a place was named, but holds no usable token.
    """
    variables = os.environ if environment is None else environment
    if path is not None:
        return _read_token(path, "--token-path")
    if secret := variables.get(TOKEN_VARIABLE, "").strip():
        return _checked(secret, TOKEN_VARIABLE)
    if named := variables.get(TOKEN_PATH_VARIABLE):
        return _read_token(Path(named), TOKEN_PATH_VARIABLE)
    default = Path.home() / ".ray" / "auth_token"
    return _read_token(default, "Ray's default") if default.is_file() else None


def _read_token(path: Path, named_by: str) -> Token:
    try:
        secret = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise EspanError(f"token file {path} ({named_by}): {reason}; {HOW_TO_GIVE_A_TOKEN}") from error
    return _checked(secret, f"{path} ({named_by})")


def _checked(secret: str, origin: str) -> Token:
    if not secret:
        raise EspanError(f"token file {origin} is empty; write one with `ray get-auth-token --generate`")
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise EspanError(f"{origin} does not hold a token: one word of printable ASCII is expected")
    return Token(secret, origin)
