"""Which failures of a training a restart of its workers can fix, and one line about every other."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterator, Mapping

from pipelines.errors import EspanError, one_line
from pipelines.system.disk import write_problem

_CONNECTION_TEXT = re.compile(
    r"\bgloo\b|\bNCCL\b|\bnccl[A-Z]|TCPStore|Connection (?:closed|reset|refused)|Broken pipe|Socket Timeout",
)
"""gloo (torch 2.13) raises plain RuntimeErrors; their texts name a file of its source, or the connection."""
_HARDWARE_TEXT = re.compile(
    r"ECC|NVLink|hardware|unspecified launch failure|unknown error|busy or unavailable", re.IGNORECASE
)
_HOST_MEMORY_TEXT = "can't allocate memory"
_REMOTE_STORES = ("aiohttp", "botocore", "aiobotocore", "urllib3", "requests")


class FinalFailure(EspanError):
    """Ends a training at once, because the failure would happen again after a restart.

    Args:
        line: what is wrong and what to do.
        report: the traceback, where the line does not say it all.
        at: seconds since 1970; of several workers' failures the first counts, others may follow from it.
    """

    def __init__(self, line: str, report: str = "", at: float = 0.0) -> None:
        super().__init__(line)
        self.line, self.report, self.at = line, report, at

    def __reduce__(self) -> tuple[type[FinalFailure], tuple[str, str, float]]:
        return type(self), (self.line, self.report, self.at)


def restart_mends(error: BaseException) -> bool:
    """Says whether `error`, raised in a worker, indicates a lost worker, node, device or connection."""
    return not isinstance(error, EspanError) and any(_is_loss(each) for each in _causes(error))


def final_failure(error: Exception, output: str | None = None) -> FinalFailure:
    """Returns the failure for an `error` that no restart can fix; `output` is the stage's folder."""
    if isinstance(error, FinalFailure):
        return error
    return FinalFailure(*_explained(error, output), at=time.time())


def _explained(error: Exception, output: str | None) -> tuple[str, str]:
    if isinstance(error, EspanError):
        return str(error), ""
    import torch

    report = "".join(traceback.format_exception(error))
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU's memory ran out ({one_line(error).split('. ')[0]}); lower micro_batch_rows, set "
            "activation_checkpointing: true, or raise context_parallel or deepspeed.zero"
        ), report
    if isinstance(error, MemoryError) or _HOST_MEMORY_TEXT in str(error):
        return (
            f"a worker's memory ran out ({one_line(error) or 'MemoryError'}); lower workers or "
            "micro_batch_rows, set activation_checkpointing: true, or use machines with more memory"
        ), report
    if problem := write_problem(error, output):
        return problem, report
    text = one_line(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}{_where(error)}", report


def _is_loss(error: BaseException) -> bool:
    import ray.exceptions
    import torch
    import torch.distributed

    if isinstance(error, ConnectionError | TimeoutError | torch.distributed.DistError):
        return True
    if isinstance(error, ray.exceptions.RayError):
        # What a task raised is that task's failure; everything else is Ray's own loss.
        return not isinstance(error, ray.exceptions.RayTaskError)
    if isinstance(error, torch.AcceleratorError):
        return bool(_HARDWARE_TEXT.search(str(error)))
    if type(error).__module__.partition(".")[0] in _REMOTE_STORES:
        return "Connect" in type(error).__name__ or "Timeout" in type(error).__name__
    return isinstance(error, RuntimeError) and bool(_CONNECTION_TEXT.search(str(error)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields `error` and what it was raised from; not what was merely being handled when it was raised."""
    while error is not None:
        yield error
        error = error.__cause__


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" (in {frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def first_failure(errors: Mapping[int, Exception]) -> FinalFailure | None:
    """Returns the failure that ends the training, from what each rank raised; None if a restart may help.

    When a worker is lost, the others fail in whatever way their exchanges do: then nothing is final.
    """
    final = [error for error in errors.values() if isinstance(error, FinalFailure)]
    return min(final, key=lambda each: each.at) if len(final) == len(errors) and final else None
