"""Refuses a place in S3 for which there are no credentials, by its URL, where s3fs would not say which."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from pipelines.errors import EspanError, one_line

PROTOCOLS = ("s3://", "s3a://")
"""How URLs begin that s3fs opens."""

_ADVICE = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of ~/.aws/credentials, "
    "or run where the machine has a role"
)

_CHECKED: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""By their identity, since two file systems of the same options are equal, whatever they found."""


def check_credentials(file_system: Any, place: str) -> None:
    """Refuses `place` of an s3fs file system that would sign requests and has nothing to sign them with.

    Raises:
        EspanError: names the place and says how credentials are given.
    """
    if _signs_nothing(file_system) or _has_keys(file_system) or _CHECKED.get(id(file_system)) is file_system:
        return
    from botocore.exceptions import BotoCoreError
    from fsspec.asyn import sync

    try:
        file_system.connect()  # once for each file system; its session keeps the credentials
        if sync(file_system.loop, file_system.session.get_credentials) is not None:
            _CHECKED[id(file_system)] = file_system
            return
        why = "none were found"
    except BotoCoreError as error:  # half of them, or a profile that is not there
        why = one_line(error)
    raise EspanError(f"{place} needs credentials of S3: {why}; {_ADVICE}")


def _signs_nothing(file_system: Any) -> bool:
    from botocore import UNSIGNED

    return file_system.anon or file_system.config_kwargs.get("signature_version") is UNSIGNED


def _has_keys(file_system: Any) -> bool:
    return bool(file_system.key or file_system.client_kwargs.get("aws_access_key_id"))
