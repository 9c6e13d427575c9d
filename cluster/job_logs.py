"""Follows a job's output to its end, across dropped connections, without losing or repeating a character."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from cluster.connection import explained
from pipelines.errors import EspanError

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 120.0
"""How long a head may be out of reach before following gives up; the job itself goes on."""
SILENCE_SECONDS = 300.0
"""A connection this long without output is reopened: a gateway may have dropped it silently."""


def write_to_stdout(text: str) -> None:
    """Passes output on at once, so that a pipe sees it live too."""
    sys.stdout.write(text)
    sys.stdout.flush()


def follow(
    client: JobSubmissionClient, job: str, write: Callable[[str], None] = write_to_stdout
) -> JobDetails:
    """Writes the job's output as it comes and returns the job's details once it has ended.

    Raises:
        EspanError: the head stayed out of reach for `PATIENCE_SECONDS`.
    """
    written = 0
    last_contact = time.monotonic()

    def write_new(text: str, start: int) -> None:
        """Writes what of `text`, which begins at character `start` of the output, is not written yet."""
        nonlocal written, last_contact
        last_contact = time.monotonic()
        fresh = text[max(0, written - start) :]
        if fresh:
            write(fresh)
            written += len(fresh)

    while True:
        try:
            with suppress(TimeoutError):
                asyncio.run(_tail(client, job, write_new))
            last_contact = time.monotonic()
            details = client.get_job_info(job)
            if details.status.is_terminal():
                with explained(client.get_address()):
                    write_new(client.get_job_logs(job), 0)
                return details
        except _lost_contact() as error:
            if time.monotonic() - last_contact > PATIENCE_SECONDS:
                raise EspanError(
                    f"lost the Ray head at {client.get_address()} for {PATIENCE_SECONDS:.0f} s; "
                    f"the job may be running still: espan status {job}"
                ) from error
        time.sleep(POLL_SECONDS)


async def _tail(client: JobSubmissionClient, job: str, write_new: Callable[[str, int], None]) -> None:
    """Passes on the output from its beginning, with each piece's position, while the connection lasts.

    Raises:
        TimeoutError: nothing came for `SILENCE_SECONDS`.
    """
    position = 0
    clock = asyncio.get_running_loop()
    async with asyncio.timeout(SILENCE_SECONDS) as silence:
        async for text in client.tail_job_logs(job):
            silence.reschedule(clock.time() + SILENCE_SECONDS)
            write_new(text, position)
            position += len(text)


def _lost_contact() -> tuple[type[Exception], ...]:
    """What Ray's client raises when a connection drops or a proxy in between answers instead."""
    import aiohttp
    import requests

    return (aiohttp.ClientError, requests.exceptions.RequestException, ConnectionError, RuntimeError)
