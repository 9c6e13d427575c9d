"""Compares what a worker will need with what its device has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.errors import InvalidKeyError
from pipelines.system.machine import bytes_text
from pipelines.train.plan.memory.count import Rows, UncountableError, counted_model
from pipelines.train.plan.memory.device import Device
from pipelines.train.plan.memory.fit import Fix, find_fix
from pipelines.train.plan.memory.parts import MemoryParts
from pipelines.train.plan.sharding import check_layers, check_rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pipelines.context import CheckContext
    from pipelines.models.configuration import Described
    from pipelines.recipe.keys.train import TrainKeys


def check_memory(
    stage: TrainKeys,
    model: Described | PreTrainedConfig | None,
    rows: Rows,
    context: CheckContext,
    device: Device,
) -> None:
    """Refuses a training whose workers cannot fit their devices.

    What is too much for this machine's main memory is refused only by a run: whoever plans may want to run it
    on a cluster that is not here.

    Raises:
        InvalidKeyError: it names the keys that would make it fit.
    """
    nothing_known = device.memory is None and not device.hosts
    if model is None or nothing_known or (context.planning and device.local):
        return
    counted = counted_model(model, rows)
    try:
        parts = counted.parts(stage, gpu=device.gpu)
    except UncountableError:
        return
    if _fits(stage, parts, device):
        _check_hosts(stage, counted.loading_bytes(stage), device)
        return

    def fits(changed: TrainKeys) -> bool:
        changed.check_groups()
        changed.rows_per_step(rows.length)
        check_rows(changed, rows.length, rows.packed)
        check_layers(changed, context)
        return _fits(changed, counted.parts(changed, gpu=device.gpu), device)

    fix = find_fix(stage, fits, shared=device.local)
    key = "workers" if fix is None or device.local else fix.key
    raise InvalidKeyError(key, f"{_too_much(stage, parts, device)}; {_advice(fix, device)}")


def memory_text(
    stage: TrainKeys, model: Described | PreTrainedConfig | None, rows: Rows, device: Device
) -> dict[str, str]:
    """Returns what `espan plan` prints about memory."""
    if model is None:
        return {"memory": "unknown until the model is here"}
    counted = counted_model(model, rows)
    try:
        parts = counted.parts(stage, gpu=device.gpu)
    except UncountableError as error:
        return {"memory": f"unknown: {error}"}
    lines = {"memory": _parts_text(stage, parts, device)}
    if device.gpu:
        lines["host memory"] = f"about {bytes_text(counted.loading_bytes(stage))} a worker while it loads"
    return lines


def _check_hosts(stage: TrainKeys, loading: int, device: Device) -> None:
    """Refuses nodes whose main memory does not hold what their workers load.

    Raises:
        InvalidKeyError: no kind of node that workers may get has enough.
    """
    needs = [(memory, min(stage.workers, workers) * loading) for memory, workers in device.hosts]
    if not device.gpu or not needs or any(need <= memory for memory, need in needs):
        return
    memory, need = max(needs)
    raise InvalidKeyError(
        "workers",
        f"the workers of a node need about {bytes_text(need)} of main memory while they load, and it has "
        f"{bytes_text(memory)}; use nodes with more memory, or raise resources.cpus so that fewer share one",
    )


def _fits(stage: TrainKeys, parts: MemoryParts, device: Device) -> bool:
    return device.memory is None or parts.total * (stage.workers if device.local else 1) <= device.memory


def _parts_text(stage: TrainKeys, parts: MemoryParts, device: Device) -> str:
    there = ""
    if device.memory is not None:
        sharing = f" for {stage.workers} workers" if device.local and stage.workers > 1 else ""
        there = f" of {bytes_text(device.memory)}{sharing} ({device.name})"
    text = f"{bytes_text(parts.total)} a worker{there}, at its peak {parts.moment}: {parts}"
    if _fits(stage, parts, device):
        return text
    return f"{text}; too much to train here: needs a cluster (RAY_ADDRESS)"


def _too_much(stage: TrainKeys, parts: MemoryParts, device: Device) -> str:
    assert device.memory is not None
    if not device.local:
        there = bytes_text(device.memory)
        return f"a worker needs {bytes_text(parts.total)} ({parts}), and {device.name} has {there}"
    return (
        f"{stage.workers} workers need about {bytes_text(stage.workers * parts.total)} (each {parts}), and "
        f"{device.name} has {bytes_text(device.memory)}"
    )


def _advice(fix: Fix | None, device: Device) -> str:
    if fix is not None:
        elsewhere = ", or on a cluster" if device.local else ""
        return f"it fits with {fix.text}{elsewhere}"
    if device.local:
        return "use a cluster or shorter rows"
    return "no change of keys that was tried makes it fit; use larger GPUs or shorter rows"
