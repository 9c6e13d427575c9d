"""What can be said of a training before anything starts: whether it can work, and what it will take."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.context import Check, CheckContext
from pipelines.errors import EspanError, InvalidKeyError, one_line
from pipelines.models.architecture import described_model
from pipelines.models.configuration import Described
from pipelines.models.recurrences import KEY, planned_recurrences, recurrences_text, refusal_of_wish
from pipelines.models.references import check_model, external_files, plan_of_model
from pipelines.prepare.shards import MANIFEST, read_manifest
from pipelines.recipe.keys.prepare import PrepareKeys
from pipelines.recipe.keys.train import NewModel, TrainKeys
from pipelines.system import storage
from pipelines.system.capacity import expected_capacity
from pipelines.system.precision import choose_precision
from pipelines.train.pace import planned_time
from pipelines.train.plan.memory.check import check_memory, memory_text
from pipelines.train.plan.memory.count import Rows
from pipelines.train.plan.memory.device import Device, device_of
from pipelines.train.plan.received import exchange_text, received, row_shape
from pipelines.train.plan.sharding import check_architecture, check_layers, check_rows
from pipelines.train.resources import in_precision, reservation
from pipelines.train.tokenizer import check_tokenizer_of_data


def external_inputs(keys: TrainKeys) -> tuple[str, ...]:
    """Returns the shards' manifest, which holds their hashes, and the model's files."""
    manifest = storage.join(keys.data, MANIFEST)
    return (manifest, *external_files(keys.model)) if isinstance(keys.model, str) else (manifest,)


def check(keys: TrainKeys, context: CheckContext) -> None:
    """Refuses a missing corpus or model, rows that do not fit steps or workers, and too little memory.

    Raises:
        InvalidKeyError: names the key.
    """
    rows = _rows(keys, context)
    keys.rows_per_step(rows.length)
    check_rows(keys, rows.length, rows.packed)
    if isinstance(keys.model, NewModel):
        _check_new_model(keys.model)
    else:
        check_model("model", keys.model, context)
        check_tokenizer_of_data(keys, context)
    check_architecture(keys, rows.packed, context)
    check_layers(keys, context)
    there = expected_capacity()
    workers = reservation(keys, there)
    settled = in_precision(keys, choose_precision(keys.precision, workers).precision)
    device = device_of(keys.gpu.bytes, workers, there)
    _check_recurrence(keys, context, device, here=there.local)
    check_memory(settled, described_model(keys.model, context), rows, context, device)


def plan(keys: TrainKeys, context: CheckContext) -> Mapping[str, str]:
    """Returns what workers reserve, their precision; shapes of a step, length of the training, memory of a
    worker; who shares rows, and at what cost.
    """
    there = expected_capacity()
    workers = reservation(keys, there)
    choice = choose_precision(keys.precision, workers)
    device = device_of(keys.gpu.bytes, workers, there)
    return {
        "workers": str(workers),
        "precision": choice.text(workers.gpus),
        **_plan(in_precision(keys, choice.precision), context, device),
        "time": planned_time(keys, workers, context),
    }


CHECK = Check(check=check, plan=plan, external_inputs=external_inputs)


def _plan(keys: TrainKeys, context: CheckContext, device: Device) -> dict[str, str]:
    corpus = _rows(keys, context)
    rows = keys.rows_per_step(corpus.length)
    micro_batches = rows // (keys.groups * keys.micro_batch_rows)
    dealt = f"{keys.groups} workers" if keys.context_parallel == 1 else _groups_text(keys.groups)
    return {
        **(plan_of_model(keys.model, context) if isinstance(keys.model, str) else {"model": "new"}),
        "attention": keys.attention.text,
        **_recurrences(keys, context, device),
        "shapes": f"{rows} rows of {corpus.length:,} tokens a step: {dealt} "
        f"x {micro_batches} micro-batches x {keys.micro_batch_rows} rows",
        "length": f"{keys.steps:,} steps, {keys.steps * keys.tokens_per_step:,} tokens",
        **(
            {}
            if context.finished
            else memory_text(keys, described_model(keys.model, context), corpus, device)
        ),
        "restarts": _restarts_text(keys),
        **_parallel_plan(keys, corpus, micro_batches, context),
    }


def _recurrences(keys: TrainKeys, context: CheckContext, device: Device) -> dict[str, str]:
    if context.finished:
        return {}
    model = described_model(keys.model, context)
    found = [] if model is None else planned_recurrences(model, keys.attention)
    return {"recurrences": recurrences_text(found, keys.recurrence, gpu=device.gpu)} if found else {}


def _check_recurrence(keys: TrainKeys, context: CheckContext, device: Device, *, here: bool) -> None:
    if keys.recurrence == "auto" or (model := described_model(keys.model, context)) is None:
        return
    found = planned_recurrences(model, keys.attention)
    if reason := refusal_of_wish(found, keys.recurrence, gpu=device.gpu, here=here):
        raise InvalidKeyError(KEY, reason)


def _restarts_text(keys: TrainKeys) -> str:
    taken = "any number of" if keys.max_preemptions is None else f"up to {keys.max_preemptions}"
    return f"after up to {keys.max_failures} losses of workers and {taken} preemptions of nodes"


def _parallel_plan(
    keys: TrainKeys, corpus: Rows, micro_batches: int, context: CheckContext
) -> dict[str, str]:
    if keys.context_parallel == 1:
        return {}
    shape = row_shape(keys, corpus.length, corpus.packed)
    tokens = shape["tokens"]
    exchange = {}
    if not context.finished:
        model = described_model(keys.model, context)
        text = "unknown until the model is here"
        if model is not None:
            text = exchange_text(received(keys, model, shape, micro_batches))
        exchange = {"exchange": text}
    return {
        "layout": f"{_groups_text(keys.groups)} x {keys.context_parallel} context-parallel ranks, "
        f"{tokens // keys.context_parallel:,} of {tokens:,} tokens a rank",
        **exchange,
    }


def _rows(keys: TrainKeys, context: CheckContext) -> Rows:
    """Returns the shape of the data's rows, of an earlier stage or of shards that are there."""
    earlier = context.require_stage_or_path("data", keys.data, kinds=("prepare",))
    if earlier is not None:
        assert isinstance(earlier.keys, PrepareKeys)
        return Rows(earlier.keys.sequence_length, earlier.keys.packing == "documents")
    try:
        manifest = read_manifest(keys.data)
    except EspanError as error:
        raise InvalidKeyError("data", str(error)) from error
    return Rows(manifest.sequence_length, manifest.packing == "documents")


def _check_new_model(model: NewModel) -> None:
    try:
        Described.new(model.new).remembered("valid", None, lambda _: True)
    except (TypeError, ValueError) as error:
        raise InvalidKeyError("model.new", one_line(error)) from error


def _groups_text(groups: int) -> str:
    return "1 data-parallel group" if groups == 1 else f"{groups} data-parallel groups"
