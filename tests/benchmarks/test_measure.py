"""Time and memory of a call are measured right."""

import torch

from benchmarks import measure
from benchmarks.measure import interleaved_seconds, peak_bytes


def test_peak_memory_is_the_most_held_at_once():
    mebibyte = 2**20

    def call() -> torch.Tensor:
        first = torch.empty(3 * mebibyte, dtype=torch.uint8)
        del first
        second = torch.empty(mebibyte, dtype=torch.uint8)
        return torch.cat([second, second])

    assert peak_bytes(call, "cpu") == 3 * mebibyte
    assert peak_bytes(lambda: None, "cpu") == 0


def test_calls_are_timed_in_turn_and_equally_often_where_time_allows():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    samples = interleaved_seconds(calls, "cpu", repeats=3, seconds=0)
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in samples.items()} == {"a": 3, "b": 3}
    assert interleaved_seconds({}, "cpu", repeats=3, seconds=0) == {}


def test_a_long_call_is_timed_once(monkeypatch):
    monkeypatch.setattr(measure, "seconds_of", lambda call, device: call())
    samples = interleaved_seconds(
        {"long": lambda: measure.LONG, "short": lambda: 0.5}, "cpu", repeats=3, seconds=2
    )
    assert {name: len(times) for name, times in samples.items()} == {"long": 1, "short": 4}
