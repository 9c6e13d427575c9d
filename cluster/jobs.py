"""`espan submit`, `status`, `logs` and `stop`: recipes as jobs on a Ray cluster elsewhere.

Each is a plain function that typer can mount. What a job prints goes to stdout, what these commands say about
it to stderr. They end with 0 only if what was asked happened: `submit` and `logs --follow` only if the job
SUCCEEDED.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.connection import connect, explained, head_address
from cluster.job_logs import POLL_SECONDS, follow, write_to_stdout
from cluster.working_dir import MEBIBYTE, pack_working_dir
from pipelines.errors import EspanError, did_you_mean, nearest
from pipelines.recipe.parse import find_recipe, read_recipe, shipped_recipes
from pipelines.recipe.variables import parse_settings

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

STOP_SECONDS = 60.0
INTERRUPTED = 130
_COMMAND_NOT_FOUND = 127
_AGENT_SECONDS = 60.0
_NO_AGENT_YET = "No available agent"

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's name, as `espan submit` printed it.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        help="The head's dashboard, http://HOST:8265. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or here."
    ),
]
TokenPathOption = Annotated[
    Path | None,
    typer.Option(
        help="File with the cluster's token. Default: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."
    ),
]


def submit(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe inside the working directory, or one that ships."),
    ],
    address: AddressOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Overrides one of the recipe's variables."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")] = True,
    working_dir: Annotated[
        Path, typer.Option(help="The folder that the job runs in; it is uploaded.")
    ] = Path("."),
    token_path: TokenPathOption = None,
) -> None:
    """Run a recipe as a job on a Ray cluster; exits with 0 only if the job succeeded."""
    command = entrypoint(recipe, working_dir, settings or [])
    name = read_recipe(find_recipe(recipe), parse_settings(settings or [])).name
    url = head_address(address)
    with tempfile.TemporaryDirectory(prefix="espan-submit-") as scratch:
        archive = Path(scratch) / "working_dir.zip"
        package = pack_working_dir(working_dir, archive)
        client = connect(address, token_path)
        job = _submit(client, command, job_name(name), archive)
    _say(
        f"job {job} submitted to {url}: {command} "
        f"({package.files} files, {package.archive_bytes / MEBIBYTE:.1f} MiB)"
    )
    if not wait:
        print(job)
        return
    _follow_to_end(client, job)


def status(job: JobArgument, address: AddressOption = None, token_path: TokenPathOption = None) -> None:
    """Print a job's state; exits with the job's code if it failed, with 1 if it was stopped, else with 0."""
    client = connect(address, token_path)
    details = _details(client, job)
    print(f"{job} {details.status.value}{_duration(details)}")
    if details.status.is_terminal():
        _end(details)


def logs(
    job: JobArgument,
    address: AddressOption = None,
    to_end: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    token_path: TokenPathOption = None,
) -> None:
    """Print what a job has printed; with --follow exits with 0 only if the job succeeds."""
    client = connect(address, token_path)
    _details(client, job)
    if to_end:
        _follow_to_end(client, job)
        return
    with explained(client.get_address()):
        write_to_stdout(client.get_job_logs(job))


def stop(job: JobArgument, address: AddressOption = None, token_path: TokenPathOption = None) -> None:
    """Stop a job and wait until it has stopped; exits with 1 if it had already ended by itself."""
    client = connect(address, token_path)
    details = _details(client, job)
    if not details.status.is_terminal():
        with explained(client.get_address()):
            client.stop_job(job)
        details = _wait_until_stopped(client, job)
    if details.status.value != "STOPPED":
        raise EspanError(f"job {job} was not stopped: it had ended by itself, {details.status.value}")
    print(f"{job} STOPPED{_duration(details)}")


def entrypoint(recipe: str, working_dir: Path, settings: list[str]) -> str:
    """The shell command that the job runs at the root of its copy of `working_dir`.

    Raises:
        EspanError: there is no such recipe, or it would not travel with the working directory.
    """
    found, root = find_recipe(recipe).resolve(), working_dir.resolve()
    if found.is_relative_to(root):
        named = found.relative_to(root).as_posix()
    elif recipe in shipped_recipes():
        named = recipe
    else:
        raise EspanError(
            f"recipe {recipe} lies outside the working directory {root}; give a --working-dir above it"
        )
    return shlex.join(["espan", "run", named, *(word for setting in settings for word in ("--set", setting))])


def job_name(recipe_name: str) -> str:
    """A name that tells jobs apart and says what each runs: the recipe's, with eight random characters."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", recipe_name).strip("-") or "recipe"
    return f"{readable}-{uuid.uuid4().hex[:8]}"


def exit_code(details: JobDetails) -> int:
    """The code to end with for a job that has ended: 0 for SUCCEEDED only, the entrypoint's if it failed."""
    if details.status.value == "SUCCEEDED":
        return 0
    code = details.driver_exit_code
    return code if code is not None and 0 < code < 256 else 1


def _submit(client: JobSubmissionClient, command: str, name: str, archive: Path) -> str:
    """Submits, once there is an agent to take jobs: a head starts one some seconds after its dashboard."""
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            with explained(client.get_address()):
                return str(
                    client.submit_job(
                        entrypoint=command, submission_id=name, runtime_env={"working_dir": str(archive)}
                    )
                )
        except EspanError as error:
            if _NO_AGENT_YET not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _follow_to_end(client: JobSubmissionClient, job: str) -> None:
    try:
        details = follow(client, job)
    except KeyboardInterrupt:
        _say(f"job {job} goes on; follow it with `espan logs {job} --follow`, end it with `espan stop {job}`")
        raise typer.Exit(INTERRUPTED) from None
    _say(f"job {job} {details.status.value}{_duration(details)}")
    _end(details)


def _end(details: JobDetails) -> None:
    """Exits with the job's exit code, and says why unless it succeeded."""
    code = exit_code(details)
    if code == 0:
        return
    if details.driver_exit_code == _COMMAND_NOT_FOUND:
        _say("the head has no `espan` on its PATH: install it there, or start Ray where it is installed")
    elif details.message:
        _say(_reason(details.message, details.driver_exit_code is not None))
    raise typer.Exit(code)


def _reason(message: str, entrypoint_ran: bool) -> str:
    """Ray's message; only its first sentence where the rest repeats the output that was already shown."""
    return message.split(", last available logs")[0].splitlines()[0] if entrypoint_ran else message.strip()


def _details(client: JobSubmissionClient, job: str) -> JobDetails:
    with explained(client.get_address()):
        try:
            return client.get_job_info(job)
        except RuntimeError as error:
            if "status code 404" not in str(error):
                raise
            known = [each.submission_id for each in client.list_jobs() if each.submission_id]
    raise EspanError(f"no job {job} at {client.get_address()}{did_you_mean(nearest(job, known))}")


def _wait_until_stopped(client: JobSubmissionClient, job: str) -> JobDetails:
    deadline = time.monotonic() + STOP_SECONDS
    while not (details := _details(client, job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise EspanError(
                f"job {job} is still {details.status.value} {STOP_SECONDS:.0f} s after it was told to stop"
            )
        time.sleep(POLL_SECONDS)
    return details


def _duration(details: JobDetails) -> str:
    if not details.start_time:
        return ""
    end = details.end_time / 1000 if details.end_time else time.time()
    return f" after {end - details.start_time / 1000:.0f} s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
