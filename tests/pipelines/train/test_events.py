"""What the driver shows while workers train."""

import io

from pipelines.system.progress import Progress
from pipelines.train.events import EventQueue, LiveProgress


def test_events_are_taken_once_and_in_order() -> None:
    queue = EventQueue()
    queue.put({"step": 1})
    queue.put({"step": 2})
    assert queue.take() == [{"step": 1}, {"step": 2}]
    assert queue.take() == []


def test_progress_follows_the_steps_back_to_the_checkpoint_and_on_to_the_end() -> None:
    stream = io.StringIO()
    live = LiveProgress(Progress(stream, interval_seconds=0), "tuned", steps=6)
    step = {"loss": 2.5, "tokens_per_second": 1234.5}
    for event in ({"at": 0}, {"step": 5, **step}, {"at": 4}, {"step": 6, **step}, {"message": "hello"}):
        live.show(event)
    live.close()
    lines = stream.getvalue().splitlines()
    done = [line.split()[1] for line in lines if line.startswith("tuned:")]
    assert done == ["0/6", "5/6", "4/6", "6/6", "6/6"]
    assert "loss 2.5" in lines[1]
    assert "tokens per second 1,234" in lines[1]
    assert "hello" in lines
