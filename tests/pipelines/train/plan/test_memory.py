"""What there is for a worker, and what is said where it is too little."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.context import CheckContext
from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.train import TrainKeys
from pipelines.system.capacity import Capacity, NodeType
from pipelines.system.machine import GIB
from pipelines.system.worker_resources import reserve
from pipelines.train.plan.memory import check as check_module
from pipelines.train.plan.memory.check import check_memory, memory_text
from pipelines.train.plan.memory.count import PROCESS_BYTES, Counted, Rows
from pipelines.train.plan.memory.device import Device, device_of, gpu_memory
from pipelines.train.plan.memory.fit import find_fix
from se_model.hybrid import Mamba2HybridConfig
from tests.pipelines.train.conftest import SPAN, TINY

CONFIGURATION = Mamba2HybridConfig(**TINY, vocab_size=64)
ROWS = Rows(1024, packed=True)


def stage(**keys: Any) -> TrainKeys:
    plain = {
        "data": "x",
        "model": {"new": TINY},
        "attention": SPAN,
        "steps": 1,
        "tokens_per_step": 8192,
        "learning_rate": 1.0,
        "precision": "fp32",
    }
    return TrainKeys.model_validate(plain | keys)


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    return CheckContext("tuned", str(tmp_path), 0, str(tmp_path), {})


def needed(**keys: Any) -> int:
    return Counted(CONFIGURATION, ROWS).parts(stage(**keys), gpu=True).total


def test_every_way_to_save_memory_saves_memory() -> None:
    plain = needed(workers=8)
    assert needed(workers=8, activation_checkpointing=True) < plain
    assert needed(workers=8, precision="bf16") < plain
    assert needed(workers=8, context_parallel=2) < plain
    assert needed(workers=4) > plain
    assert needed(workers=4, micro_batch_rows=2) > needed(workers=4)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("80GiB", 80 * GIB), ("24 GiB", 24 * GIB), ("80 GB", 80 * 10**9), ("1.5tib", 1536 * GIB)],
)
def test_memory_of_a_gpu_is_written_with_its_unit(written: str, expected: int) -> None:
    assert stage(gpu={"memory": written}).gpu.bytes == expected


@pytest.mark.parametrize("written", ["80", "GiB", "0GiB", "80 GiBs", "-1GiB"])
def test_what_is_no_amount_of_memory_is_refused(written: str) -> None:
    with pytest.raises(ValidationError, match="is not an amount of memory; write a number and its unit"):
        stage(gpu={"memory": written})


def nodes(accelerator: str | None, gpus: int = 8, memory: float = 64 * GIB) -> Capacity:
    resources = {"CPU": 16.0, "GPU": float(gpus), "memory": memory}
    return Capacity((NodeType("workers", resources, accelerator, most=2, scaled=True),), local=False)


def test_a_node_types_gpus_are_known_by_what_ray_calls_them() -> None:
    there = nodes("L4")
    device = device_of(None, reserve(8, None, None, there), there)
    assert (device.gpu, device.memory) == (True, 24 * GIB)
    assert gpu_memory("A100-40G") == 40 * GIB
    assert gpu_memory("nobody's") is None
    unknown = nodes(None)
    assert device_of(None, reserve(8, None, None, unknown), unknown).memory is None
    assert device_of(30 * GIB, reserve(8, None, None, there), there).memory == 30 * GIB
    half = reserve(8, None, 0.5, there)
    assert device_of(None, half, there).memory == 12 * GIB


def test_a_refusal_names_the_keys_that_make_it_fit(context: CheckContext) -> None:
    full, saving = needed(workers=8), needed(workers=8, activation_checkpointing=True)
    asked = stage(workers=8)
    with pytest.raises(
        InvalidKeyError, match=r"a worker needs .* has .*; it fits with activation_checkp"
    ) as caught:
        check_memory(asked, CONFIGURATION, ROWS, context, Device(True, (full + saving) // 2, "a GPU"))
    assert caught.value.key == "activation_checkpointing"
    check_memory(asked, CONFIGURATION, ROWS, context, Device(True, full, "a GPU"))
    check_memory(asked, CONFIGURATION, ROWS, context, Device(True, None, "a GPU"))
    with pytest.raises(InvalidKeyError, match=r"no change of keys .* use larger GPUs"):
        check_memory(asked, CONFIGURATION, ROWS, context, Device(True, 1000, "a GPU"))


def test_keys_are_changed_together_where_one_is_not_enough() -> None:
    tried: list[tuple[bool, int]] = []

    def fits(changed: TrainKeys) -> bool:
        tried.append((changed.activation_checkpointing, changed.deepspeed.zero))
        return changed.activation_checkpointing and changed.deepspeed.zero == 3

    fix = find_fix(stage(workers=2), fits, shared=False)
    assert fix is not None
    assert fix.text == "activation_checkpointing: true and deepspeed: {zero: 3}"
    assert fix.key == "activation_checkpointing"
    assert tried[0] == (True, 2)


def test_workers_that_share_this_machine_are_refused_with_how_many_would_fit(context: CheckContext) -> None:
    alone = Counted(CONFIGURATION, ROWS).parts(stage(workers=1), gpu=False).total
    assert alone > PROCESS_BYTES
    machine = Device(False, int(1.1 * alone), "this machine", local=True)
    with pytest.raises(
        InvalidKeyError, match=r"workers: 2 workers need about .*iB .*, and this machine has .*"
    ):
        check_memory(stage(workers=2), CONFIGURATION, ROWS, context, machine)
    planning = CheckContext("tuned", context.output, 0, context.workspace, {}, planning=True)
    check_memory(stage(workers=2), CONFIGURATION, ROWS, planning, machine)
    text = memory_text(stage(workers=2), CONFIGURATION, ROWS, machine)["memory"]
    assert "for 2 workers (this machine)" in text
    assert "too much to train here" in text


def test_nodes_whose_main_memory_does_not_hold_what_is_loaded_are_refused(context: CheckContext) -> None:
    small = Device(True, None, "a GPU", hosts=((3.0 * PROCESS_BYTES, 8),))
    with pytest.raises(InvalidKeyError, match=r"main memory while they load, .*; use nodes"):
        check_memory(stage(workers=8), CONFIGURATION, ROWS, context, small)
    check_memory(stage(workers=2), CONFIGURATION, ROWS, context, small)


def test_nothing_is_said_about_a_model_that_is_not_here(context: CheckContext) -> None:
    check_memory(stage(), None, ROWS, context, Device(True, 1, "a GPU"))
    assert memory_text(stage(), None, ROWS, Device(True, 1, "a GPU")) == {
        "memory": "unknown until the model is here"
    }


def test_what_does_not_run_without_memory_is_said_and_not_refused(
    context: CheckContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.train.plan.memory import counter

    monkeypatch.setattr(counter, "_MOST_OPERATIONS", 50)
    monkeypatch.setattr(check_module, "counted_model", Counted)
    device = Device(True, 1, "a GPU")
    check_memory(stage(), CONFIGURATION, ROWS, context, device)
    assert (
        "unknown: mamba2_hybrid does not run without"
        in memory_text(stage(), CONFIGURATION, ROWS, device)["memory"]
    )
