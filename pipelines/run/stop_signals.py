"""Ctrl-C, SIGTERM and SIGHUP (the terminal is gone) end a run the same way: the work stops, Ray is shut down,
the lock is released."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequested(BaseException):
    """A signal asked to stop. Not an `Exception`, so that no handler on the way mistakes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name, `SIGTERM` for instance."""
        return signal.Signals(self.number).name


@contextmanager
def stop_signals() -> Iterator[None]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into `StopRequested`; the second ends the process at once.

    A SIGHUP that is ignored stays ignored: that is how `nohup` asks to go on without a terminal.

    Inside the body all raise `KeyboardInterrupt`, the only exception from a signal handler that Ray's
    waiting calls let through (ray 2.60, `_raylet.pyx: check_signals`); others leave them waiting. Ray takes
    SIGINT over while it trains and then ends in `SystemExit`, which becomes `StopRequested` too. Outside the
    main thread signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    numbers = [signal.SIGINT, signal.SIGTERM, *hangup]
    before = {number: signal.getsignal(number) for number in numbers}
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise StopRequested(received[0] if received else signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
