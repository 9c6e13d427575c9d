"""Checkpoints count when they are committed, and not before."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import EspanError
from pipelines.train.worker.checkpoints import COMMITTED, CheckpointStore, TrainState, checkpoint_name
from pipelines.train.worker.group import Group


class Alone(Group):
    """A group of one that needs no process group."""

    def __init__(self) -> None:
        super().__init__(rank=0, size=1, local_rank=0, node=0, device=None)

    def barrier(self) -> None:
        pass


def state(step: int) -> TrainState:
    return TrainState(
        step=step, tokens_seen=step * 8, rows_consumed=step, seed=1, next_micro_batch=step, workers=1, zero=2
    )


def writes(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "weights").write_text(content)

    return write


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "checkpoints"))


def test_the_newest_committed_checkpoint_is_found_with_its_state(store: CheckpointStore) -> None:
    assert store.newest() is None
    for step in (9, 10, 100):
        store.save(state(step), writes("x"), Alone())
    newest = store.newest()
    assert newest is not None
    assert newest.state == state(100)


def test_a_checkpoint_cut_off_before_its_marker_is_passed_over(store: CheckpointStore) -> None:
    store.save(state(1), writes("one"), Alone())

    def dies(folder: Path) -> None:
        writes("half")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(state(2), dies, Alone())
    newest = store.newest()
    assert newest is not None
    assert newest.state.step == 1
    store.save(state(2), writes("two"), Alone())
    newest = store.newest()
    assert newest is not None
    assert Path(newest.place, "engine", "weights").read_text() == "two"


def test_the_marker_is_written_after_everything_else(store: CheckpointStore) -> None:
    place = Path(store.save(state(1), writes("x"), Alone()))
    times = {path.name: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    assert max(times, key=lambda name: times[name]) == COMMITTED


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_named_and_not_used(store: CheckpointStore, damage: str) -> None:
    place = Path(store.save(state(3), writes("content"), Alone()))
    weights = place / "engine" / "weights"
    weights.unlink() if damage == "remove" else weights.write_text("con")
    with pytest.raises(
        EspanError, match=r"step-00000003 is damaged: engine/weights has (no|3) bytes instead of 7"
    ):
        store.newest()


def test_only_the_newest_stay(store: CheckpointStore, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        store.save(state(step), writes("x"), Alone())
    unfinished = tmp_path / "checkpoints" / checkpoint_name(5)
    unfinished.mkdir()
    store.prune(keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        checkpoint_name(3),
        checkpoint_name(4),
    ]


def test_a_checkpoint_of_another_format_is_refused(store: CheckpointStore) -> None:
    place = Path(store.save(state(1), writes("x"), Alone()))
    text = (place / "state.json").read_text()
    (place / "state.json").write_text(text.replace("checkpoint/1", "checkpoint/9"))
    with pytest.raises(EspanError, match="not of format espan-checkpoint/1"):
        store.newest()
