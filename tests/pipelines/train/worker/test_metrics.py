"""The metrics file."""

import json
from pathlib import Path

import pytest

from pipelines.train.worker.metrics import METRICS_FILE, MetricsLog, read_metrics


def write_steps(folder: Path, steps: range, resumed_step: int) -> None:
    with MetricsLog(folder, resumed_step=resumed_step) as log:
        for step in steps:
            log.write({"step": step, "loss": 1 / step})


def test_a_resumed_file_has_every_step_once(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 8), resumed_step=0)
    write_steps(tmp_path, range(5, 10), resumed_step=4)
    assert [record["step"] for record in read_metrics(str(tmp_path / METRICS_FILE))] == list(range(1, 10))


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4), resumed_step=0)
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-7])
    assert [record["step"] for record in read_metrics(str(path))] == [1, 2]
    write_steps(tmp_path, range(3, 5), resumed_step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    write_steps(tmp_path, range(3, 4), resumed_step=0)
    assert read_metrics(str(tmp_path / METRICS_FILE)) == [{"step": 3, "loss": 1 / 3}]


def test_a_record_is_readable_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write({"step": 1, "loss": 2.5})
        assert read_metrics(str(tmp_path / METRICS_FILE)) == [{"step": 1, "loss": 2.5}]


def test_what_is_not_a_number_is_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, resumed_step=0) as log, pytest.raises(ValueError, match="not JSON compliant"):
        log.write({"step": 1, "loss": float("nan")})


def test_tensorboard_sees_the_same_numbers(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 3), resumed_step=0)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_lists_are_in_the_file_alone(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, resumed_step=0) as log:
        log.write({"step": 1, "loss": 2.5, "by_head": [[0.5, None]]})
    assert read_metrics(str(tmp_path / METRICS_FILE)) == [{"step": 1, "loss": 2.5, "by_head": [[0.5, None]]}]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"by_head" not in events.read_bytes()


def test_no_file_means_no_records(tmp_path: Path) -> None:
    assert read_metrics(str(tmp_path / METRICS_FILE)) == []
