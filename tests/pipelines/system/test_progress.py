"""Progress: plain lines without a terminal, bars that go away with one."""

from __future__ import annotations

import io
import threading

import pytest

from pipelines.system.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_a_line_at_intervals_and_one_at_the_end() -> None:
    stream = io.StringIO()
    progress = Progress(stream, interval_seconds=0.0)
    with progress.task("train", total=1000, unit="steps") as task:
        task.advance(1, loss=2.34567, learning_rate=1e-4)
        task.advance(999, loss=1.5)
    progress.message("done")
    lines = stream.getvalue().splitlines()
    assert lines == [
        "train: 1/1,000 steps  0 s  loss 2.346  learning rate 0.0001",
        "train: 1,000/1,000 steps  0 s  loss 1.5  learning rate 0.0001",
        "train: 1,000/1,000 steps  0 s  loss 1.5  learning rate 0.0001",
        "done",
    ]


def test_between_intervals_nothing_is_printed() -> None:
    stream = io.StringIO()
    progress = Progress(stream, interval_seconds=3600.0)
    task = progress.task("read", unit="files")
    for _ in range(100):
        task.advance()
    assert stream.getvalue() == ""
    progress.close()
    progress.close()
    assert stream.getvalue() == "read: 100 files  0 s\n"


def test_many_threads_lose_no_step() -> None:
    progress = Progress(io.StringIO(), interval_seconds=3600.0)
    task = progress.task("score", total=8000, unit="rows")

    def work() -> None:
        for _ in range(1000):
            task.advance()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert task.done == 8000


def test_a_terminal_gets_a_bar_and_the_last_line_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream)
    assert progress.live
    with progress.task("train", total=2, unit="steps") as task:
        task.advance(2, loss=1.25)
        progress.message("a line in between")
    assert "━" in stream.getvalue()
    assert "a line in between" in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].endswith("train: 2/2 steps  0 s  loss 1.25")
