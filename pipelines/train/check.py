"""The keys of a train stage, and what can be said about them before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Protocol, cast

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipelines.errors import EspanError, InvalidKeyError
from pipelines.models.configuration import Described
from pipelines.models.references import check_model, external_files, plan_of_model
from pipelines.prepare.shards import MANIFEST, read_manifest
from pipelines.recipe.keys.attention import Attention
from pipelines.recipe.keys.schedule import Schedule
from pipelines.recipe.keys.section import CheckContext, Context, Stage
from pipelines.recipe.keys.train import DeepSpeed, Gpu, HyLora, NewModel, Resources
from pipelines.recipe.path_keys import MODEL, StageOrPath
from pipelines.system import storage
from pipelines.system.capacity import Capacity, expected_capacity
from pipelines.system.precision import Precision, Settled, choose_precision
from pipelines.system.worker_resources import Reservation, reserve
from pipelines.train.layout import Layout
from pipelines.train.pace import planned_time
from pipelines.train.plan.architecture import described_model
from pipelines.train.plan.memory.check import check_memory, memory_text
from pipelines.train.plan.memory.count import Rows
from pipelines.train.plan.memory.device import Device, device_of
from pipelines.train.plan.received import exchange_text, received, row_shape
from pipelines.train.plan.sharding import check_architecture, check_groups, check_layers, check_rows
from pipelines.train.tokenizer import check_tokenizer_of_data

Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Rows(Protocol):
    """What a prepare stage, and its manifest, say of rows."""

    @property
    def sequence_length(self) -> int: ...

    @property
    def packing(self) -> str: ...


class TrainStage(Stage):
    """The keys below `train:`.

    Attributes:
        data: a prepare stage, or a folder of shards.
        model: a train stage, `builtin:tiny`, a folder, a hub name (`owner/name` or
            `owner/name@revision`), or `{new: {...}}`.
        attention: what the attention layers compute while training.
        hylora: what trains; every parameter where it is left out.
        steps: optimizer updates.
        tokens_per_step: tokens that go into one update, over all workers.
        micro_batch_rows: rows that one worker runs through the model together.
        workers: Ray Train workers; each holds a share of every step's rows.
        context_parallel: workers that share each row, equal parts of it; divides `workers`. A row then needs
            as much memory per worker as one of that fraction of its length.
        deepspeed: how training state is split over the workers.
        learning_rate: the highest; `schedule` says how it gets there and goes down again.
        weight_decay: of matrices; vectors (norms, biases) never decay.
        betas: of AdamW.
        clip: gradients are scaled down to this norm; null leaves them as they are.
        precision: of weights and arithmetic; with bf16 the optimizer keeps its own fp32 weights. `auto` is
            bf16 on GPUs that have it, else fp32 (see `pipelines.system.precision`).
        activation_checkpointing: compute activations again in the backward pass instead of keeping them.
        checkpoint_every: steps between checkpoints; the last step always writes one.
        keep_checkpoints: how many stay.
        max_failures: how often training restarts from a checkpoint after a worker was lost.
        max_preemptions: how often it does after a node was taken away with notice (a drained spot machine),
            counted apart; null for no limit.
        log_every: steps between records of the metrics.
        resources: of one worker.
        gpu: what a GPU of the workers has; compared with what a worker needs.
    """

    execution_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "workers",
            "context_parallel",
            "checkpoint_every",
            "keep_checkpoints",
            "max_failures",
            "max_preemptions",
            "log_every",
            "resources",
            "gpu",
        }
    )

    data: StageOrPath
    model: Annotated[str | NewModel, MODEL]
    attention: Attention
    hylora: HyLora | None = None
    steps: PositiveInt
    tokens_per_step: PositiveInt
    micro_batch_rows: PositiveInt = 1
    workers: PositiveInt = 1
    context_parallel: PositiveInt = 1
    deepspeed: DeepSpeed = DeepSpeed()
    learning_rate: PositiveFloat
    schedule: Schedule = Schedule()
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    clip: PositiveFloat | None = 1.0
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    checkpoint_every: PositiveInt = 50
    keep_checkpoints: PositiveInt = 2
    max_failures: NonNegativeInt = 3
    max_preemptions: NonNegativeInt | None = None
    log_every: PositiveInt = 1
    resources: Resources = Resources()
    gpu: Gpu = Gpu()

    @model_validator(mode="after")
    def _keys_fit_together(self) -> TrainStage:
        check_groups(self)
        if self.schedule.warmup_steps >= self.steps:
            raise InvalidKeyError("schedule.warmup_steps", f"must be less than steps ({self.steps})")
        if isinstance(self.model, NewModel) and self.hylora is not None:
            raise InvalidKeyError(
                "hylora", "adapts a trained model, and this one is new; remove it to train every parameter"
            )
        return self

    def references(self) -> tuple[str, ...]:
        """The shards and the model."""
        return (self.data, self.model) if isinstance(self.model, str) else (self.data,)

    def external_inputs(self) -> tuple[str, ...]:
        """The shards' manifest, which holds their hashes, and the model's files."""
        manifest = storage.join(self.data, MANIFEST)
        return (manifest, *external_files(self.model)) if isinstance(self.model, str) else (manifest,)

    @property
    def layout(self) -> Layout:
        """Which workers share rows."""
        return Layout(self.workers, self.context_parallel)

    def check(self, context: CheckContext) -> None:
        """Refuses a missing corpus or model, rows that do not fit steps or workers, and what cannot fit in
        memory.
        """
        rows = self._rows(context)
        length = rows.sequence_length
        self.rows_per_step(length)
        check_rows(self, length, rows.packing == "documents")
        if isinstance(self.model, str):
            check_model("model", self.model, context)
            check_tokenizer_of_data(self, context)
        else:
            self._check_new_model()
        check_architecture(self, rows.packing, context)
        check_layers(self, context)
        self._check_memory(_memory_rows(rows), context)

    def reservation(self, capacity: Capacity) -> Reservation:
        """Returns what the workers reserve where there is `capacity`.

        Raises:
            EspanError: there can never be so many GPUs, or nobody tells whether there are any.
        """
        gpus, told = self.resources.gpus, self.gpu.memory is not None
        if gpus is None and told:
            found = reserve(self.workers, self.resources.cpus, 1.0, capacity)
            return replace(found, reason="as gpu.memory says")
        return reserve(self.workers, self.resources.cpus, gpus, capacity)

    def reserving(self, workers: Reservation) -> TrainStage:
        """Returns the same stage with what its workers reserve settled."""
        return self.model_copy(update={"resources": Resources(cpus=workers.cpus, gpus=workers.gpus)})

    def in_precision(self, precision: Settled) -> TrainStage:
        """Returns the same stage with its precision settled."""
        return self.model_copy(update={"precision": precision})

    def plan(self, context: CheckContext) -> Mapping[str, str]:
        """What workers reserve, their precision; shapes of a step, length of the training, memory of a
        worker; who shares rows, and at what cost.
        """
        there = expected_capacity()
        workers = self.reservation(there)
        choice = choose_precision(self.precision, workers)
        device = device_of(self.gpu.bytes, workers, there)
        return {
            "workers": str(workers),
            "precision": choice.text(workers.gpus),
            **self.in_precision(choice.precision)._plan(context, device),
            "time": planned_time(self, workers, context),
        }

    def _plan(self, context: CheckContext, device: Device) -> dict[str, str]:
        corpus = self._rows(context)
        length = corpus.sequence_length
        rows = self.rows_per_step(length)
        groups = self.layout.groups
        micro_batches = rows // (groups * self.micro_batch_rows)
        dealt = f"{groups} workers" if self.context_parallel == 1 else _groups_text(groups)
        return {
            **(plan_of_model(self.model, context) if isinstance(self.model, str) else {"model": "new"}),
            "shapes": f"{rows} rows of {length:,} tokens a step: {dealt} "
            f"x {micro_batches} micro-batches x {self.micro_batch_rows} rows",
            "length": f"{self.steps:,} steps, {self.steps * self.tokens_per_step:,} tokens",
            **self._memory_plan(_memory_rows(corpus), context, device),
            "restarts": self._restarts_text(),
            **self._parallel_plan(length, corpus.packing == "documents", micro_batches, context),
        }

    def rows_per_step(self, sequence_length: int) -> int:
        """Returns how many rows of `sequence_length` tokens make up a step.

        Raises:
            InvalidKeyError: `tokens_per_step` is not a whole number of micro-batches for every data-parallel
                group.
        """
        groups = self.layout.groups
        unit = sequence_length * groups * self.micro_batch_rows
        if self.tokens_per_step % unit:
            nearest = max(1, round(self.tokens_per_step / unit)) * unit
            dealt = f"{groups} workers"
            if self.context_parallel > 1:
                dealt = f"{groups} groups of {self.context_parallel} workers"
            raise InvalidKeyError(
                "tokens_per_step",
                f"{self.tokens_per_step} is not a multiple of {unit} ({sequence_length} tokens in a row x "
                f"{dealt} x {self.micro_batch_rows} rows in a micro-batch); the nearest that is: {nearest}",
            )
        return self.tokens_per_step // sequence_length

    def _restarts_text(self) -> str:
        taken = "any number of" if self.max_preemptions is None else f"up to {self.max_preemptions}"
        return f"after up to {self.max_failures} losses of workers and {taken} preemptions of nodes"

    def _parallel_plan(
        self, length: int, packed: bool, micro_batches: int, context: CheckContext
    ) -> dict[str, str]:
        if self.context_parallel == 1:
            return {}
        shape = row_shape(self, length, packed)
        tokens = shape["tokens"]
        exchange = {}
        if not context.finished:
            model = described_model(self, context)
            text = "unknown until the model is here"
            if model is not None:
                text = exchange_text(received(self, model, shape, micro_batches))
            exchange = {"exchange": text}
        return {
            "layout": f"{_groups_text(self.layout.groups)} x {self.context_parallel} context-parallel ranks, "
            f"{tokens // self.context_parallel:,} of {tokens:,} tokens a rank",
            **exchange,
        }

    def _memory_plan(self, rows: Rows, context: CheckContext, device: Device) -> dict[str, str]:
        return {} if context.finished else memory_text(self, described_model(self, context), rows, device)

    def _rows(self, context: CheckContext) -> _Rows:
        earlier = context.require_stage_or_path("data", self.data, kinds=("prepare",))
        if earlier is not None:
            return cast(_Rows, earlier.stage)
        try:
            return read_manifest(self.data)
        except EspanError as error:
            raise InvalidKeyError("data", str(error)) from error

    def _check_memory(self, rows: Rows, context: CheckContext) -> None:
        there = expected_capacity()
        workers = self.reservation(there)
        settled = self.in_precision(choose_precision(self.precision, workers).precision)
        device = device_of(self.gpu.bytes, workers, there)
        check_memory(settled, described_model(self, context), rows, context, device)

    def _check_new_model(self) -> None:
        assert isinstance(self.model, NewModel)
        try:
            Described.new(self.model.new).remembered("valid", None, lambda _: True)
        except (TypeError, ValueError) as error:
            raise InvalidKeyError("model.new", " ".join(str(error).split())) from error


def _memory_rows(rows: _Rows) -> Rows:
    return Rows(rows.sequence_length, rows.packing == "documents")


def _groups_text(groups: int) -> str:
    return "1 data-parallel group" if groups == 1 else f"{groups} data-parallel groups"


def run(stage: TrainStage, context: Context) -> Mapping[str, Any]:
    """Trains from the newest checkpoint in the stage's folder on; leaves the model and `model.json` there."""
    from pipelines.train.run import train

    return train(stage, context)
