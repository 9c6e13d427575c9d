"""The estimate of a worker's memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import InvalidKeyError
from pipelines.models import new_model
from pipelines.stage import CheckContext, EarlierStage
from pipelines.train import stage as stage_module
from pipelines.train.memory import PROCESS_BYTES, Sizes, model_sizes, worker_bytes
from pipelines.train.stage import TrainStage
from tests.pipelines.train.conftest import SPAN, TINY

PAPER = Sizes(parameters=2_697_590_880, hidden=2560, layers=64, vocabulary=50_288)


def stage(**keys: Any) -> TrainStage:
    plain = {
        "data": "x",
        "model": "y",
        "attention": SPAN,
        "steps": 1,
        "tokens_per_step": 1,
        "learning_rate": 1.0,
    }
    return TrainStage.model_validate(plain | keys)


def bytes_of(**keys: Any) -> int:
    return worker_bytes(stage(**keys), PAPER, sequence_length=8192)


def test_every_way_to_save_memory_saves_memory() -> None:
    plain = bytes_of(workers=8)
    assert bytes_of(workers=8, deepspeed={"zero": 1}) > plain > bytes_of(workers=8, deepspeed={"zero": 3})
    assert bytes_of(workers=4) > plain
    assert bytes_of(workers=8, activation_checkpointing=True) < plain
    assert bytes_of(workers=8, precision="bf16") < plain
    assert bytes_of(workers=8, hylora={}) < plain
    assert bytes_of(workers=8, micro_batch_rows=2) > plain


def test_state_of_one_worker_is_sixteen_bytes_a_parameter() -> None:
    sizes = Sizes(parameters=10**9, hidden=1, layers=1, vocabulary=1)
    # fp32 weights and gradients, and the optimizer's fp32 weights and two moments.
    expected = PROCESS_BYTES + 10**9 * (4 + 4 + 12)
    assert worker_bytes(stage(), sizes, sequence_length=1) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    return CheckContext("tuned", str(tmp_path), 0, str(tmp_path), {})


def test_sizes_are_read_from_a_folder_without_loading_it(tmp_path: Path, context: CheckContext) -> None:
    model = new_model(TINY | {"vocab_size": 48})
    model.save_pretrained(tmp_path / "model")
    stored = {id(parameter): parameter.numel() for parameter in model.parameters()}
    sizes = model_sizes(stage(model=str(tmp_path / "model")), context)
    assert sizes == Sizes(sum(stored.values()), hidden=32, layers=3, vocabulary=48)
    assert model_sizes(stage(model={"new": TINY | {"vocab_size": 48}}), context) == sizes


def test_a_tuned_model_has_the_sizes_of_its_base(context: CheckContext) -> None:
    base = EarlierStage("base", "train", stage(model={"new": TINY | {"vocab_size": 48}}), "base")
    with_base = CheckContext("tuned", context.output, 0, context.workspace, {"base": base})
    assert model_sizes(stage(model="base"), with_base) == model_sizes(base.stage, context)


def test_nothing_is_said_about_a_model_that_is_not_here(context: CheckContext) -> None:
    assert model_sizes(stage(model="owner/name"), context) is None


def test_what_cannot_fit_on_this_machine_is_refused(
    corpus: Path, context: CheckContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "local_training", lambda: True)
    sizes = TINY | {"hidden_size": 65536, "vocab_size": 50_000, "num_attention_heads": 4096}
    huge = stage(data=str(corpus), model={"new": sizes}, tokens_per_step=64)
    with pytest.raises(InvalidKeyError, match=r"workers: 1 workers need about .*iB, and this machine has"):
        huge.check(context)
    assert torch.get_default_device().type == "cpu"
