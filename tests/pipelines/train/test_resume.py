"""A training that stopped anywhere goes on as if it had not."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.train.worker import checkpoints
from pipelines.train.worker.group import Group
from pipelines.train.worker.loop import train
from tests.pipelines.train.conftest import MakeJob, Workers
from tests.pipelines.train.trainings import metrics, train_silently


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(step: int) -> Callable[[Mapping[str, Any]], None]:
    def tell(event: Mapping[str, Any]) -> None:
        if event.get("step") == step:
            raise Killed

    return tell


@pytest.fixture
def make_adapted(make_job: MakeJob, alone: Group) -> MakeJob:
    """Jobs with dropout, so that random numbers matter, and a checkpoint every second step."""
    base = make_job("base", steps=2)
    train_silently(alone, base)
    keys: dict[str, Any] = {"model": f"{base.output}/model"}
    keys |= {"hylora": {"rank": 4, "alpha": 8, "dropout": 0.2}}
    keys |= {"steps": 7, "checkpoint_every": 2, "weight_decay": 0.1}
    return lambda name, **more: make_job(name, **keys, **more)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_losses_after_any_interruption_are_those_of_an_undisturbed_run(
    make_adapted: MakeJob, alone: Group, zero: int
) -> None:
    undisturbed, disturbed = (
        make_adapted(name, deepspeed={"zero": zero}) for name in ("undisturbed", "disturbed")
    )
    train_silently(alone, undisturbed)
    for step in (1, 4, 5):
        with pytest.raises(Killed):
            train(disturbed, alone, killed_at(step))
    train_silently(alone, disturbed)
    names = ("step", "loss", "gradient_norm", "learning_rate", "tokens_seen", "retrieval_distance")
    assert torch.equal(metrics(undisturbed, *names), metrics(disturbed, *names))
    left, right = (Path(job.output, "model", "adapter_model.safetensors") for job in (undisturbed, disturbed))
    assert left.read_bytes() == right.read_bytes()


def test_an_interruption_while_a_checkpoint_is_written_loses_nothing(
    make_adapted: MakeJob, alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, disturbed = make_adapted("undisturbed"), make_adapted("disturbed")
    train_silently(alone, undisturbed)
    commit = checkpoints._commit

    def dies_at_step_4(place: str) -> None:
        if place.endswith("4"):
            raise Killed
        commit(place)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_commit", dies_at_step_4)
        with pytest.raises(Killed):
            train_silently(alone, disturbed)
    train_silently(alone, disturbed)
    assert torch.equal(metrics(undisturbed, "step", "loss"), metrics(disturbed, "step", "loss"))


def test_an_interruption_after_the_last_step_only_writes_the_model(
    make_job: MakeJob, alone: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(steps=2)
    train_silently(alone, job)
    first = metrics(job, "step", "loss", "tokens_per_second")
    model = Path(job.output, "model", "model.safetensors")
    content = model.read_bytes()
    model.unlink()
    train_silently(alone, job)
    assert torch.equal(metrics(job, "step", "loss", "tokens_per_second"), first)
    assert model.read_bytes() == content


@pytest.mark.parametrize("name", ["run [1]", "latin-\udce9"])
def test_a_training_goes_on_in_a_folder_of_any_name(make_job: MakeJob, alone: Group, name: str) -> None:
    undisturbed, disturbed = (make_job(each, steps=4, checkpoint_every=2) for each in ("plain", name))
    train_silently(alone, undisturbed)
    with pytest.raises(Killed):
        train(disturbed, alone, killed_at(3))
    train_silently(alone, disturbed)
    assert torch.equal(metrics(undisturbed, "step", "loss"), metrics(disturbed, "step", "loss"))


@pytest.mark.parametrize("zero", [2, 3])
def test_training_goes_on_with_another_number_of_workers(
    make_job: MakeJob, alone: Group, two_workers: Workers, zero: int
) -> None:
    keys = {"deepspeed": {"zero": zero}, "schedule": {"kind": "constant"}, "weight_decay": 0.5}
    undisturbed = make_job("undisturbed", **keys, steps=6)
    train_silently(alone, undisturbed)
    two_workers.run(train_silently, make_job("moved [1]", **keys, steps=3, workers=2))
    moved = make_job("moved [1]", **keys, steps=6)
    train_silently(alone, moved)
    names = ("step", "loss", "gradient_norm")
    # Two workers add their gradients in another order than one does.
    torch.testing.assert_close(metrics(undisturbed, *names), metrics(moved, *names), rtol=1e-5, atol=1e-6)
