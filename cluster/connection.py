"""Opens a Ray head's job interface, and says in one line why it will not open."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.tokens import HOW_TO_GIVE_A_TOKEN, Token, find_token
from pipelines.errors import EspanError
from pipelines.system.surroundings import proxy_for, reach_loopback_directly

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_ANSWER_SECONDS = 10.0
_TALKATIVE_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")


def head_address(address: str | None) -> str:
    """The HTTP address of the head's dashboard: the one given, the environment's, or the local default.

    Raises:
        EspanError: the address is not an HTTP one (a Ray Client or cluster address, say).
    """
    named = address or next((os.environ[name] for name in _ADDRESS_VARIABLES if os.environ.get(name)), None)
    full = (named or DEFAULT_ADDRESS).rstrip("/")
    if "://" not in full:
        full = f"http://{full}"
    if not full.startswith(("http://", "https://")):
        raise EspanError(f"address {full} is not the head's dashboard; give --address http://HOST:8265")
    return full


def connect(address: str | None = None, token_path: Path | None = None) -> JobSubmissionClient:
    """A client of the head at `address` whose connection and token have been tried.

    The token is sent only to a head that asks for one.

    Raises:
        EspanError: no head answers there, or it wants a token that is missing or wrong.
    """
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    url = head_address(address)
    reach_loopback_directly(url)
    token = find_token(token_path)
    wants_token = _wants_token(url)
    if wants_token and token is None:
        raise EspanError(f"the Ray head at {url} wants a token, and none was found; {HOW_TO_GIVE_A_TOKEN}")
    if not wants_token:
        print(
            f"warning: the Ray head at {url} takes jobs from anyone: start it with RAY_AUTH_MODE=token",
            file=sys.stderr,
        )
    with _given_address_counts(), explained(url, token):
        return JobSubmissionClient(url, headers=token.headers() if wants_token and token else None)


@contextmanager
def explained(url: str, token: Token | None = None) -> Iterator[None]:
    """Turns what Ray's job client raises into an `EspanError` of one line that says what to do."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        held = f"the token from {token.origin}" if token else "the token"
        raise EspanError(
            f"the Ray head at {url} refused {held}; {HOW_TO_GIVE_A_TOKEN} with the head's own"
        ) from error
    except (requests.exceptions.RequestException, ConnectionError) as error:
        raise EspanError(
            f"the Ray head at {url} does not answer ({type(error).__name__}){_through(url)}; is it still up?"
        ) from error
    except RuntimeError as error:
        raise EspanError(f"the Ray head at {url} refused: {_last_line(str(error))}") from error


def _wants_token(url: str) -> bool:
    import requests

    try:
        answer = requests.get(f"{url}/api/authentication_mode", timeout=_ANSWER_SECONDS)
        mode = answer.json()["authentication_mode"]
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise EspanError(
            f"no Ray head answers at {url} ({type(error).__name__}){_through(url)}; "
            "check --address, and that it was started with --head"
        ) from error
    except (requests.exceptions.RequestException, ValueError, KeyError, TypeError) as error:
        raise EspanError(
            f"what answers at {url}{_through(url)} is not a Ray dashboard (2.52 or later); check --address"
        ) from error
    return bool(mode == "token")


def _through(url: str) -> str:
    """Returns which proxy stands between here and `url`, for a message; empty where there is none."""
    variable = proxy_for(url)
    if variable is None:
        return ""
    host = urlsplit(url).hostname
    return f" through the proxy that {variable} names (to reach it directly, add {host} to no_proxy)"


@contextmanager
def _given_address_counts() -> Iterator[None]:
    """Hides the variables by which Ray's client overrides its address (ray 2.60, `dashboard/utils.py`)."""
    hidden = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
