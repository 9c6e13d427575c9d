"""The keys of a train stage."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.attention import Attention
from pipelines.recipe.keys.common import Precision, RecurrenceKey
from pipelines.recipe.keys.schedule import Schedule
from pipelines.recipe.keys.section import Section, StageKeys
from pipelines.recipe.path_keys import MODEL, StageOrPath

Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def bytes_of(text: str) -> int:
    """Returns an amount of memory, written with its unit: `80GiB`, `80 GB`.

    Raises:
        ValueError: `text` is not an amount of memory.
    """
    found = _AMOUNT.fullmatch(text)
    unit = None if found is None else _UNITS.get(found[2].upper())
    if found is None or unit is None or not float(found[1]):
        raise ValueError(f"{text!r} is not an amount of memory; write a number and its unit, as in 80GiB")
    return int(float(found[1]) * unit)


class NewModel(Section):
    """`model: {new: {...}}`: a Mamba-2-Hybrid that starts from random weights.

    Attributes:
        new: keys of `se_model.Mamba2HybridConfig`. `vocab_size` defaults to that of the data's tokenizer.
    """

    new: dict[str, Any]


class HyLora(Section):
    """What trains of a model that is adapted; see `se_model.HyLoraConfig`.

    Attributes:
        rank: of the updates.
        alpha: the updates are scaled by `alpha / rank`.
        dropout: share of an update's inputs that is zeroed while training.
        variant: `lora`: updates of every projection of the attention layers; `lora+`: also input embeddings
            and norms, in full; `hylora` (the paper's): also every 1-D convolution, in full.
    """

    rank: PositiveInt = 32
    alpha: PositiveFloat = 64.0
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    variant: Literal["hylora", "lora+", "lora"] = "hylora"


class DeepSpeed(Section):
    """How DeepSpeed splits training state over the workers.

    Attributes:
        zero: 1 splits the optimizer's state, 2 gradients too, 3 weights too.
    """

    zero: Literal[1, 2, 3] = 2


class Resources(Section):
    """What one worker reserves.

    Attributes:
        cpus: logical CPUs, and with it threads; by default one, or its share where a local machine has fewer
            cores than workers.
        gpus: by default one where the cluster has, or its autoscaler can start, nodes with GPUs, else none.
            0 computes on CPUs.
    """

    cpus: PositiveFloat | None = None
    gpus: float | None = Field(default=None, ge=0.0)


class Gpu(Section):
    """The GPUs that workers will get.

    Attributes:
        memory: memory of one GPU, such as `80GiB`. By default that of the cluster's type of GPU, if Ray tells
            it. What does not fit is refused before anything starts.
    """

    memory: str | None = None

    @field_validator("memory")
    @classmethod
    def _memory_is_an_amount(cls, value: str | None) -> str | None:
        if value is not None:
            bytes_of(value)
        return value

    @property
    def bytes(self) -> int | None:
        """The memory of one GPU in bytes; None if the recipe does not say."""
        return None if self.memory is None else bytes_of(self.memory)


def divisors(number: int) -> list[int]:
    """Returns what divides `number`, ascending."""
    return [each for each in range(1, number + 1) if number % each == 0]


def nearest_of(wanted: int, choices: list[int]) -> int:
    """Returns the choice nearest to `wanted`, the first of several."""
    return min(choices, key=lambda each: abs(each - wanted))


class TrainKeys(StageKeys):
    """The keys below `train:`.

    Attributes:
        data: a prepare stage, or a folder of shards.
        model: a train stage, `builtin:tiny`, `builtin:ruler-tiny`, a folder, a hub name (`owner/name` or
            `owner/name@revision`), or `{new: {...}}`.
        attention: what the attention layers compute while training.
        recurrence: what computes recurrent layers (state-space, delta-rule and short-convolution layers):
            `library`: kernels of mamba-ssm, flash-linear-attention and causal-conv1d, on GPUs; `chunked`:
            torch, on any device; `naive`: token by token, for comparisons; `auto`: `library` where it can,
            else `chunked`. What cannot be met is refused.
        hylora: which parameters train; all of them if it is left out.
        steps: optimizer updates.
        tokens_per_step: tokens that go into one update, over all workers.
        micro_batch_rows: rows that go through the model together, on one worker or one group of them.
        workers: Ray Train workers; each, or each group of `context_parallel`, gets a share of a step's rows.
        context_parallel: workers that share each row, equal parts of it; divides `workers`. A worker then
            needs about as much memory as for a row of that fraction of the length.
        deepspeed: how training state is split over the workers.
        learning_rate: the peak learning rate; `schedule` says how it rises and falls.
        schedule: how the learning rate changes over the steps.
        weight_decay: weight decay of matrices; vectors (norms, biases) never decay.
        betas: AdamW's betas.
        clip: the largest norm of the gradients, which are scaled down to it; null for no limit.
        precision: of weights and arithmetic; with bf16 the optimizer keeps its own fp32 weights. `auto` is
            bf16 on GPUs that support it, else fp32.
        activation_checkpointing: recompute activations in the backward pass instead of keeping them.
        checkpoint_every: steps between checkpoints; the last step always writes one.
        keep_checkpoints: how many of the newest checkpoints are kept.
        max_failures: how often training restarts from a checkpoint after a worker was lost.
        max_preemptions: how often it restarts after a node is taken away with notice (drained spot machine),
            counted separately; null for no limit.
        log_every: steps between records of the metrics.
        resources: CPUs and GPUs of each worker.
        gpu: what a worker's GPU has; compared with what a worker needs.
    """

    execution_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "workers",
            "context_parallel",
            "recurrence",
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
    recurrence: RecurrenceKey = "auto"
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
    def _keys_fit_together(self) -> TrainKeys:
        self.check_groups()
        if self.schedule.warmup_steps >= self.steps:
            raise InvalidKeyError("schedule.warmup_steps", f"must be less than steps ({self.steps})")
        if isinstance(self.model, NewModel) and self.hylora is not None:
            raise InvalidKeyError(
                "hylora", "adapts a trained model, but this one is new; remove it to train every parameter"
            )
        return self

    def references(self) -> tuple[str, ...]:
        """The shards and the model."""
        return (self.data, self.model) if isinstance(self.model, str) else (self.data,)

    @property
    def groups(self) -> int:
        """Data-parallel groups: each runs micro-batches of its own, over `context_parallel` workers."""
        return self.workers // self.context_parallel

    def check_groups(self) -> None:
        """Refuses workers that cannot be split into groups.

        Raises:
            InvalidKeyError: names the nearest value that divides them.
        """
        if self.workers % self.context_parallel:
            nearest = nearest_of(self.context_parallel, divisors(self.workers))
            raise InvalidKeyError(
                "context_parallel",
                f"{self.context_parallel} does not divide workers ({self.workers}), which are dealt to rows "
                f"in groups of that many; the nearest that does: {nearest}",
            )

    def rows_per_step(self, sequence_length: int) -> int:
        """Returns how many rows of `sequence_length` tokens make up a step.

        Raises:
            InvalidKeyError: `tokens_per_step` is not a whole number of micro-batches for every data-parallel
                group.
        """
        groups = self.groups
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
